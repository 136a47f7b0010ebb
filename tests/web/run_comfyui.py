"""A real ComfyUI server with our pack alone: python run_comfyui.py COMFYUI FRONTEND BASE PORT.

Core's nodes import kornia, spandrel and others; stand-ins let ComfyUI list every node of its own.
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "comfy"))
import torchvision_stub

torchvision_stub.STUBBED |= {"kornia", "spandrel", "comfy_angle"}
torchvision_stub.install()
comfyui, frontend, base_directory, port = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu", "--port", port, "--base-directory", base_directory]
sys.argv += ["--front-end-root", frontend, "--database-url", "sqlite:///:memory:"]
sys.argv += ["--disable-api-nodes", "--disable-metadata"]
runpy.run_path(str(Path(comfyui) / "main.py"), run_name="__main__")
