"""Measures depth against truth: metrics, protocols, readers, reports; no ROS, no torch."""
