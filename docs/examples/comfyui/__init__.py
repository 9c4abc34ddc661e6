"""A node for ComfyUI that has a max-zimage server draw. Copy this folder to ComfyUI/custom_nodes/max_zimage."""

from .node import MaxZImage

NODE_CLASS_MAPPINGS = {"MaxZImage": MaxZImage}
NODE_DISPLAY_NAME_MAPPINGS = {"MaxZImage": "Z-Image (max-zimage server)"}
