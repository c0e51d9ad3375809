"""Prints what the amdsmi library says of each GPU, in the shape of `amd-smi static --json`.

Run in a process of its own with whichever Python has the library, so this file imports nothing else of the project and stays
within what Python 3.6 understands. A call that a release lacks or a card refuses leaves its fields out.
Source: ROCm/amdsmi py-interface/amdsmi_interface.py, README of the Python API.
"""

import json
import sys
from typing import Any


def main() -> None:
    """Print one JSON document; exit with a sentence when the library gives none."""
    del sys.path[0]  # this folder has a module of the same name
    try:
        import amdsmi  # type: ignore[import-not-found,unused-ignore]
    except Exception as error:  # noqa: BLE001 - it fails in whatever way its C library does
        sys.exit(f"amdsmi cannot be imported: {error}")
    try:
        amdsmi.amdsmi_init()
        handles = amdsmi.amdsmi_get_processor_handles()
    except Exception as error:  # noqa: BLE001 - its exceptions have changed their base between releases
        sys.exit(f"amdsmi cannot be initialised: {error}")

    def ask(name: str, *arguments: object) -> Any:
        try:
            return getattr(amdsmi, name)(*arguments)
        except Exception as error:  # noqa: BLE001 - one call that fails takes no other field with it
            sys.stderr.write(f"{name}: {error}\n")
            return None

    found = []
    for number, handle in enumerate(handles):
        vram = getattr(getattr(amdsmi, "AmdSmiMemoryType", None), "VRAM", 0)
        total = ask("amdsmi_get_gpu_memory_total", handle, vram)
        used = ask("amdsmi_get_gpu_memory_usage", handle, vram)
        asic = ask("amdsmi_get_gpu_asic_info", handle) or {}
        # Releases give ids as numbers or as texts; the tool prints texts.
        asic = {
            key: hex(value) if key.endswith("_id") and key != "oam_id" and isinstance(value, int) else value
            for key, value in asic.items()
        }
        driver = ask("amdsmi_get_gpu_driver_info", handle) or {}
        found.append(
            {
                "gpu": number,
                "asic": asic,
                "bus": {"bdf": ask("amdsmi_get_gpu_device_bdf", handle)},
                "uuid": ask("amdsmi_get_gpu_device_uuid", handle),
                "partition": {
                    "compute_partition": ask("amdsmi_get_gpu_compute_partition", handle),
                    "memory_partition": ask("amdsmi_get_gpu_memory_partition", handle),
                },
                "numa": {"node": ask("amdsmi_topo_get_numa_node_number", handle)},
                "driver": {"name": driver.get("driver_name"), "version": driver.get("driver_version")},
                "mem_usage": {
                    "total_vram": None if total is None else {"value": total, "unit": "B"},
                    "used_vram": None if used is None else {"value": used, "unit": "B"},
                },
            }
        )
    json.dump({"gpu_data": found}, sys.stdout, default=str)


if __name__ == "__main__":
    main()
