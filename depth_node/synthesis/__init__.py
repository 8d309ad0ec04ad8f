"""Rendered training scenes: rooms and tables with true depth (Blender Cycles, own extra).

Importing this package needs neither bpy nor the furniture catalogue; only `blender`'s
functions and the worker process import bpy, when they run.
"""
