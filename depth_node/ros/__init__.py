"""The ROS 2 shell around the core: the only place that imports rclpy or messages."""
