"""What real installations held and real failures said: listings of bitsandbytes' wheels from the package index, and
texts of reports, each with its number."""

# ruff: noqa: E501

from __future__ import annotations

from dreambooth.pins import version
from dreambooth.trainer.eightbit.surroundings import Surroundings

# The CUDA and ROCm libraries of each wheel, by bitsandbytes' version; Linux, then Windows where that differs.
_11_12 = "117 118 120 121 122 123"
_CUDA = {
    "0.35.4": "102_nocublaslt 110 110_nocublaslt 111 111_nocublaslt 112 112_nocublaslt 113 113_nocublaslt 114 "
    "114_nocublaslt 115 115_nocublaslt 116 116_nocublaslt 117 117_nocublaslt 118 118_nocublaslt",
    "0.43.0": " ".join(f"{code} {code}_nocublaslt" for code in _11_12.split()),
    "0.44.1": " ".join(f"{code} {code}_nocublaslt" for code in f"{_11_12} 124 125".split()),
    "0.45.5": f"{_11_12} 124 125 126 128",
    "0.46.1": "118 120 121 122 123 124 125 126 128 129",
    "0.48.0": "118 120 121 122 123 124 125 126 128 129 130",
    "0.49.0": "118 120 121 122 123 124 125 126 128 129 130",
    "0.50.2": "118 121 124 126 128 130 132",
}
_ROCM = {
    ("0.49.0", "linux"): "62 63 64 70 71",
    ("0.50.2", "linux"): "64 70 71 714 715 72",
    ("0.50.2", "win32"): "714 715 72",
}
WHEELS = tuple(_CUDA)
_LINUX_ONLY = ("0.35.4",)


def listing(wheel: str, platform: str) -> frozenset[str]:
    """The files of a wheel's package folder that matter here."""
    suffix = ".dll" if platform == "win32" and wheel not in _LINUX_ONLY else ".so"
    names = ["libbitsandbytes_cpu", *(f"libbitsandbytes_cuda{code}" for code in _CUDA[wheel].split())]
    names += [f"libbitsandbytes_rocm{code}" for code in _ROCM.get((wheel, platform), "").split()]
    loaders = ["cextension.py", *(["cuda_setup/main.py"] if version(wheel) < (0, 44) else [])]
    return frozenset([*(f"{name}{suffix}" for name in names), *loaders, "__init__.py", "functional.py"])


# What the guides of 2022 had people copy into 0.35 for Windows (sd_dreambooth_extension #3, #117; kohya_ss).
SHIM = frozenset(
    {"libbitsandbytes_cuda116.dll", "libbitsandbytes_cpu.dll", "cextension.py", "cuda_setup/main.py"}
)


def installed(wheel: str, platform: str = "linux", **more: object) -> Surroundings:
    """A machine on which this wheel is installed as it came."""
    folder = {
        "win32": r"C:\webui\venv\Lib\site-packages\bitsandbytes",
        "linux": "/env/lib/site-packages/bitsandbytes",
    }
    values = {"folder": folder[platform], "files": listing(wheel, platform), **more}
    return Surroundings(platform, bitsandbytes=version(wheel), version_text=wheel, **values)  # type: ignore[arg-type]


REPORTS = {
    "bnb#1848": """
RuntimeError: Attempted to use bitsandbytes native library functionality but it's not available.
Original error: Configured CUDA binary not found at /usr/local/lib/python3.12/dist-packages/bitsandbytes/libbitsandbytes_cuda131.so
Native code method attempted to call: lib.cget_managed_ptr()
""",
    "bnb 0.50": """
RuntimeError: No compatible CUDA binary found at /env/lib/site-packages/bitsandbytes/libbitsandbytes_cuda140.so
""",
    "bnb#1559": """
WARNING: BNB_CUDA_VERSION=124 environment variable detected; loading libbitsandbytes_cuda124.so.
Could not find the bitsandbytes CUDA binary at PosixPath('/notebooks/bitsandbytes/bitsandbytes/libbitsandbytes_cuda124.so')
Could not load bitsandbytes native library: /notebooks/bitsandbytes/bitsandbytes/libbitsandbytes_cpu.so: cannot open shared object file: No such file or directory
OSError: /notebooks/bitsandbytes/bitsandbytes/libbitsandbytes_cpu.so: cannot open shared object file: No such file or directory
CUDA Setup failed despite CUDA being available. Please run the following command to get more information:
""",
    "bnb#1524": r"""
Could not find the bitsandbytes CUDA binary at WindowsPath('C:/aitest/venv/lib/site-packages/bitsandbytes/libbitsandbytes_cuda124.dll')
Could not load bitsandbytes native library: Could not find module 'C:\aitest\venv\lib\site-packages\bitsandbytes\libbitsandbytes_cpu.dll' (or one of its dependencies). Try using the full path with constructor syntax.
FileNotFoundError: Could not find module 'C:\aitest\venv\lib\site-packages\bitsandbytes\libbitsandbytes_cpu.dll' (or one of its dependencies). Try using the full path with constructor syntax.
""",
    "bnb#1510": """
Could not find the bitsandbytes CUDA binary at WindowsPath('A:/ai/ComfyUI/venv/lib/site-packages/bitsandbytes/libbitsandbytes_cuda128.dll')
The installed version of bitsandbytes was compiled without GPU support. 8-bit optimizers, 8-bit multiplication, and GPU quantization are unavailable.
""",
    "bnb#1641": r"""
CUDA_SETUP: WARNING! libcudart.so not found in any environmental path. Searching in backup paths...
DEBUG: Possible options found for libcudart.so: set()
CUDA SETUP: Loading binary C:\Users\D\Python311\site-packages\bitsandbytes\libbitsandbytes_cuda121.so...
argument of type 'WindowsPath' is not iterable
""",
    "bnb#626": r"""
binary_path: D:\localGPT\venv\Lib\site-packages\bitsandbytes\cuda_setup\libbitsandbytes_cuda116.dll
CUDA SETUP: Loading binary D:\localGPT\venv\Lib\site-packages\bitsandbytes\cuda_setup\libbitsandbytes_cuda116.dll...
FileNotFoundError: Could not find module 'D:\localGPT\venv\Lib\site-packages\bitsandbytes\cuda_setup\libbitsandbytes_cuda116.dll' (or one of its dependencies). Try using the full path with constructor syntax.
""",
    "dreambooth#3": r"""
CUDA SETUP: WARNING! libcuda.so not found! Do you have a CUDA driver installed? If you are on a cluster, make sure you are on a CUDA machine!
CUDA SETUP: Loading binary C:\stable-diffusion-webui\venv\lib\site-packages\bitsandbytes\libbitsandbytes_cpu.so...
CUDA SETUP: Problem: The main issue seems to be that the main CUDA library was not detected.
""",
    "dreambooth#7": """
ImportError: cannot import name 'CUDASetup' from partially initialized module 'bitsandbytes.cuda_setup.main'
""",
    "dreambooth#47": r"""
CUDA SETUP: Loading binary C:\SD\stable-diffusion-webui\venv\lib\site-packages\bitsandbytes\libbitsandbytes_cuda116.dll...
Error no kernel image is available for execution on the device at line 167 in file D:\ai\tool\bitsandbytes\csrc\ops.cu
""",
    "bnb#1937": """
RuntimeError: CUDA error: no kernel image is available for execution on the device
""",
    "dreambooth#303": """
NameError: name 'str2optimizer8bit_blockwise' is not defined
""",
    "dreambooth#534": """
OSError: libcurand.so.10: cannot open shared object file: No such file or directory
""",
    "windows dependencies": r"""
FileNotFoundError: Could not find module 'C:\webui\venv\Lib\site-packages\bitsandbytes\libbitsandbytes_cuda128.dll' (or one of its dependencies). Try using the full path with constructor syntax.
""",
    "bnb#1550": """
OSError: /env/lib/python3.11/site-packages/bitsandbytes/libbitsandbytes_rocm62.so: undefined symbol: _Z36__device_stub__kOptimizer32bit1State
""",
    "out of memory": """
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.
""",
}
