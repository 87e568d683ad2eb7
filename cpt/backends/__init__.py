"""Processes, and the engines that spread a training over them."""
