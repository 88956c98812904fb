"""The parts of tools/draw_world.py."""
