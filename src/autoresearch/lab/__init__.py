"""What a user owns: the three files of a lab, their configuration and presets, and checks of the machine.

The files that `new` copies are in template/.
"""
