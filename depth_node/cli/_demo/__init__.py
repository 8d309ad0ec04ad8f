"""The parts of `depth-node demo`; none of them imports ROS."""
