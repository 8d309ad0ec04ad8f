# Source this in bash: puts the environment that `make` set up on the paths of this shell.
#
#   source scripts/env.sh
#   depth-node doctor
#
# Where ROS 2 is sourced it is used; otherwise the ROS 2 wheels in .venv are.
# Sourcing it a second time changes nothing.

_dn_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)

# A ROS 2 installation counts as sourced if it says so and its command is there. The wheels have
# neither, but somebody may have put the command beside them, hence the first condition.
if [ "${DEPTH_NODE_ROS:-}" != wheels ] && [ -n "${ROS_DISTRO:-}" ] \
    && [ -n "${AMENT_PREFIX_PATH:-}" ] && command -v ros2 > /dev/null 2>&1; then
  DEPTH_NODE_ROS=installed
else
  DEPTH_NODE_ROS=wheels
fi

if [ "$DEPTH_NODE_ROS" = installed ]; then
  _dn_venv=$_dn_root/.venv-$ROS_DISTRO
  DEPTH_NODE_COLCON=$_dn_root/.colcon-$ROS_DISTRO
else
  _dn_venv=$_dn_root/.venv
  DEPTH_NODE_COLCON=$_dn_root/.colcon
fi
export DEPTH_NODE_ROS DEPTH_NODE_COLCON

export VIRTUAL_ENV=$_dn_venv
case ":$PATH:" in
  *":$_dn_venv/bin:"*) ;;
  *) export PATH=$_dn_venv/bin:$PATH ;;
esac
unset PYTHONHOME

if [ "$DEPTH_NODE_ROS" = wheels ]; then
  # The wheels set no AMENT_PREFIX_PATH; without it no package finds its share directory.
  export AMENT_PREFIX_PATH=$_dn_venv CMAKE_PREFIX_PATH=$_dn_venv
  # The wheels make every Python of their environment start twice, to set this path. Setting it here
  # serves programs other than Python too, and the guard variable spares the second start.
  LD_LIBRARY_PATH=$_dn_venv/lib
  for _dn_libs in "$_dn_venv"/lib/python3*/site-packages/ros_*.libs; do
    [ -d "$_dn_libs" ] && LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$_dn_libs
  done
  export LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
  unset PYTHONPATH
fi

# A child started as `python -m depth_node...` in the root of the clone would import the source
# tree, which has no generated messages, instead of the built package. Python 3.11 and newer obey.
export PYTHONSAFEPATH=1

if [ -f "$DEPTH_NODE_COLCON/install/local_setup.bash" ]; then
  case $- in *u*) _dn_nounset=1; set +u ;; *) _dn_nounset= ;; esac
  . "$DEPTH_NODE_COLCON/install/local_setup.bash"
  [ -z "$_dn_nounset" ] || set -u
fi
unset _dn_root _dn_venv _dn_libs _dn_nounset
