"""A stand-in for AMD SMI's Python module: just the ten names vLLM 0.32's ROCm platform asks for.

What it says is set by environment variables, read at each call:
FAKE_AMDSMI_GFX (gfx942), FAKE_AMDSMI_GPUS (8), FAKE_AMDSMI_MEMORY (bytes), FAKE_AMDSMI_DEVICE_ID, FAKE_AMDSMI_NAME.
"""
import os

_BY_GFX = {  # device id (as in vLLM's name map), market name, bytes of memory
    "gfx90a": ("0x740f", "AMD Instinct MI210", 64 << 30),
    "gfx942": ("0x74a1", "AMD Instinct MI300X", 192 << 30),
    "gfx950": ("0x75a0", "AMD Instinct MI350X", 288 << 30),
    "gfx1100": ("0x744c", "AMD Radeon RX 7900 XTX", 24 << 30),
    "gfx1201": ("0x7551", "AMD Radeon AI PRO R9700", 32 << 30),
}


class AmdSmiException(Exception):
    pass


class AmdSmiMemoryType:
    VRAM = 0


def _gfx():
    return os.environ.get("FAKE_AMDSMI_GFX", "gfx942")


def amdsmi_init(*_):
    return None


def amdsmi_shut_down():
    return None


def amdsmi_get_processor_handles():
    return list(range(int(os.environ.get("FAKE_AMDSMI_GPUS", "8"))))


def amdsmi_get_gpu_asic_info(handle):
    device_id, name, _ = _BY_GFX.get(_gfx(), ("0x0", _gfx(), 0))
    return {
        "market_name": os.environ.get("FAKE_AMDSMI_NAME", name),
        "device_id": os.environ.get("FAKE_AMDSMI_DEVICE_ID", device_id),
        "target_graphics_version": _gfx(),
    }


def amdsmi_get_gpu_device_uuid(handle):
    return f"00000000-0000-0000-0000-{handle:012d}"


def amdsmi_get_gpu_memory_total(handle, kind):
    return int(os.environ.get("FAKE_AMDSMI_MEMORY", _BY_GFX.get(_gfx(), ("", "", 16 << 30))[2]))


def amdsmi_topo_get_link_type(a, b):
    return {"hops": 1, "type": 2}  # 2 = XGMI


def amdsmi_topo_get_numa_node_number(handle):
    return 0
