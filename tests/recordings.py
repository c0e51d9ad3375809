"""Small outputs in the shapes of the tools that describe GPUs, built from facts; what real machines printed is in the corpus."""

from __future__ import annotations

from typing import Any

AMD_SMI_ENTRY: dict[str, Any] = {
    "gpu": 0,
    "asic": {
        "market_name": "AMD Instinct MI300X",
        "device_id": "0x74a1",
        "rev_id": "0x00",
        "num_compute_units": 304,
        "target_graphics_version": "gfx942",
    },
    "bus": {"bdf": "0000:0C:00.0"},
    "limit": {"max_power": {"value": 750, "unit": "W"}, "socket_power": {"value": 700, "unit": "W"}},
    "numa": {"node": 1, "affinity": -1},
    "vram": {"type": "HBM", "size": {"value": 196592, "unit": "MB"}},
    "partition": {"compute_partition": "SPX", "memory_partition": "NPS1"},
}

AMD_SMI_BOX = """\
+------------------------------------------------------------------------------+
| AMD-SMI 26.0.2+39589fda  amdgpu version: 6.14.14  ROCm version: 7.0.2        |
|-------------------------------------+----------------------------------------|
| BDF                        GPU-Name | Mem-Uti   Temp   UEC       Power-Usage |
| GPU  HIP-ID  OAM-ID  Partition-Mode | GFX-Uti    Fan               Mem-Usage |
|=====================================+========================================|
| 0000:05:00.0    AMD Instinct MI300X | 0 %      41 \u00b0C   0           131/750 W |
|   0       0       2        CPX/NPS4 | 7 %        N/A             91/24574 MB |
| 0000:05:00.1    AMD Instinct MI300X | N/A        N/A   N/A               N/A |
|   1       1     N/A        CPX/NPS4 | N/A        N/A             90/24574 MB |
+-------------------------------------+----------------------------------------+
"""

ROCM_SMI_OLD: dict[str, dict[str, str]] = {
    "card0": {
        "GPU ID": "0x738c",
        "Unique ID": "0x1234",
        "Temperature (Sensor edge) (C)": "31.0",
        "Temperature (Sensor HBM 0) (C)": "N/A",
        "Average Graphics Package Power (W)": "39.0",
        "Max Graphics Package Power (W)": "290.0",
        "sclk clock level:": "0 (300Mhz)",
        "Card series": "0x1002",
        "Card model": "0x1002",
        "PCI Bus": "0000:1E:00.0",
        "GPU use (%)": "0",
        "VRAM Total Memory (B)": "34342961152",
        "VRAM Total Used Memory (B)": "6782976",
        "(Topology) Numa Node": "0",
    },
    "system": {"Driver version": "6.2.4", "PID1": "x, 1"},
}

ROCM_SMI_TEXT = """\
============================ ROCm System Management Interface ============================
WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status
Driver version: 6.16.13
GPU[0]          : Device Name:          AMD Instinct MI300X VF
GPU[0]          : Device ID:            0x74b5
GPU[0]          : Temperature (Sensor junction) (C): 89.0
GPU[0]          : sclk clock level: 1: (1259Mhz)
GPU[0]          : Max Graphics Package Power (W): 750.0
GPU[0]          : Current Socket Graphics Package Power (W): 749.0
GPU[0]          : Supported fclk frequencies on GPU0
GPU[0]          : 0: 1300Mhz *
GPU[0]          : VRAM Total Memory (B): 205822885888
GPU[0]          : Compute Partition: SPX
"""

ROCM_SMI_TABLES = """\
============================ ROCm System Management Interface ============================
=============================== Weight between two GPUs ================================
       GPU0         GPU1         GPU2
GPU0   0            15           40
GPU1   15           0            40
GPU2   40           40           0
=============================== Link Type between two GPUs =============================
       GPU0         GPU1         GPU2
GPU0   0            XGMI         PCIE
GPU1   XGMI         0            PCIE
GPU2   PCIE         PCIE         0
GPU[0]\t\t: Device ID: 0x740f
GPU[1]\t\t: Device ID: 0x740f
GPU[2]\t\t: Device ID: 0x740f
"""

ROCPROF = (
    "workload_name,hostname,cpu_model,rocm_version,gpu_series,gpu_model,gpu_arch,compute_partition,memory_partition,"
    "cu_per_gpu,max_sclk,max_mclk,hbm_bw,num_xcd,vbios\n"
    "vcopy,node-7,AMD EPYC 9684X,6.2.0-66,MI300,MI300X_A1,gfx942,SPX,NPS1,304,2100,1300,5324.8,8,113-X\n"
)

ROCPROF_OLD = (
    "workload_name,host_name,host_rocmver,name,numCU,arch,sclk,L2Banks\nx,h,4.5.2-79,mi200,104,gfx90a,1700,32\n"
)

LSPCI = """\
00:02.0 VGA compatible controller [0300]: ASPEED Technology, Inc. ASPEED Graphics Family [1a03:2000] (rev 41)
	Kernel driver in use: ast
0000:05:00.0 Processing accelerators [1200]: Advanced Micro Devices, Inc. [AMD/ATI] Device [1002:74a1]
	Subsystem: Advanced Micro Devices, Inc. [AMD/ATI] Device [1002:74a1]
	Kernel driver in use: amdgpu
	Kernel modules: amdgpu
0000:26:00.0 Processing accelerators [1200]: Advanced Micro Devices, Inc. [AMD/ATI] Device [1002:74a1]
	Kernel modules: amdgpu
0000:46:00.0 Processing accelerators [1200]: Advanced Micro Devices, Inc. [AMD/ATI] Device [1002:74a1]
	Kernel driver in use: vfio-pci
"""

LSPCI_NUMBERS = "03:00.0 0300: 1002:744c (rev c8)\n0a:00.0 0200: 15b3:101b\n"

LSPCI_MACHINE_READABLE = (
    '03:00.0 "VGA compatible controller [0300]" "Advanced Micro Devices, Inc. [AMD/ATI] [1002]" '
    '"Navi 31 [Radeon RX 7900 XT/7900 XTX/7900M] [744c]" -rc8 "Sapphire [1da2]" "Device [e471]"\n'
)

HWLOC = """<?xml version="1.0"?>
<!DOCTYPE topology SYSTEM "hwloc2.dtd">
<topology version="2.0"><object type="Machine"><object type="Package">
 <object type="Group"><object type="NUMANode" os_index="3"/>
  <object type="Bridge"><object type="PCIDev" pci_busid="0000:c1:00.0" pci_type="0380 [1002:7408] [1002:0b0c] 00">
   <object type="OSDev" name="rsmi0" subtype="RSMI"><info name="GPUModel" value="AMD INSTINCT MI200 (MCM)"/>
    <info name="RSMIVRAMSize" value="67092480"/><info name="XGMIHiveID" value="dc41"/></object></object></object></object>
 <object type="Group"><object type="NUMANode" os_index="0"/>
  <object type="PCIDev" pci_busid="0000:05:00.0" pci_type="0200 [15b3:1019] [0:0] 00"/>
  <object type="PCIDev" pci_busid="0000:d1:00.0" pci_type="0380 [1002:7408] [1002:0b0c] 00"/></object>
</object></object></topology>"""


def rccl(count: int = 8, device: str = "0x74a1", gcn: str = "gfx942", units: int = 304) -> str:
    """A full mesh over two CPUs, one link between any two."""
    addresses = [f"0000:{16 * (n + 1):02x}:00.0" for n in range(count)]
    cpus = []
    for cpu in (0, 1):
        gpus = "".join(
            f'<pci busid="{own}" class="0x120000" vendor="0x1002" device="{device}"><gpu dev="{n}" sm="{units}" gcn="{gcn}">'
            + "".join(f'<xgmi target="{other}" count="1" tclass="0x120000"/>' for other in addresses if other != own)
            + "</gpu></pci>"
            for n, own in enumerate(addresses)
            if n * 2 // count == cpu
        )
        cpus.append(f'<cpu numaid="{cpu}"><pci busid="0000:05:0{cpu}.0" vendor="0x15b3">{gpus}</pci></cpu>')
    return f'<system version="2">{"".join(cpus)}</system>'
