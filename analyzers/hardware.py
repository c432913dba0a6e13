"""What accelerators can do by their makers' datasheets: the roofline's two slopes, and the memory.

Owns the table. Figures are per accelerator as sold (one card, one module), dense bf16 without sparsity; sellers quote the double
for 2:4 sparsity. Where a datasheet states bf16 only with sparsity, half of it stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from analyzers.steptimes import StepTimesSource


@dataclass(frozen=True, slots=True)
class Hardware:
    """One accelerator."""

    name: str
    bandwidth_gb_s: float
    """Memory bandwidth, 10^9 bytes a second."""
    tflops_bf16: float
    """Dense bf16 matrix arithmetic (fp16 where the chip has no bf16), 10^12 operations a second."""
    memory_gb: float
    """As the maker names it."""
    source: str
    as_of: str
    """Year and month of the datasheet's figures."""
    kernels: StepTimesSource | None = field(default=None, compare=False, repr=False)
    """Times of its kernels as they were measured; None: there is only the datasheet."""


_ROWS = (
    Hardware("B300", 8000, 2250, 270, "NVIDIA DGX B300 datasheet, 1/8 of the system; bf16 as of B200", "2025-09"),
    Hardware("GB300", 8000, 2500, 279, "NVIDIA GB300 NVL72 datasheet, 1/72 of the rack; bf16 as of GB200", "2025-09"),
    Hardware("GB200", 8000, 2500, 186, "NVIDIA GB200 NVL72 datasheet, 1/72 of the rack", "2024-12"),
    Hardware("B200", 8000, 2250, 180, "NVIDIA DGX B200 datasheet, 1/8 of the system", "2024-12"),
    Hardware("H200", 4800, 989.5, 141, "NVIDIA H200 datasheet", "2024-11"),
    Hardware("H100", 3350, 989.5, 80, "NVIDIA H100 datasheet, SXM", "2024-03"),
    Hardware("H100-PCIE", 2000, 756.5, 80, "NVIDIA H100 PCIe datasheet", "2022-11"),
    Hardware("H100-NVL", 3900, 835.5, 94, "NVIDIA H100 datasheet, NVL", "2024-03"),
    Hardware("H20", 4000, 148, 96, "NVIDIA H20 specification", "2024-01"),
    Hardware("GH200", 4000, 989.5, 96, "NVIDIA GH200 datasheet, HBM3", "2024-03"),
    Hardware("A100-80GB", 2039, 312, 80, "NVIDIA A100 datasheet, SXM", "2022-06"),
    Hardware("A100-80GB-PCIE", 1935, 312, 80, "NVIDIA A100 datasheet, PCIe", "2022-06"),
    Hardware("A100-40GB", 1555, 312, 40, "NVIDIA A100 datasheet", "2021-06"),
    Hardware("MI300X", 5300, 1307.4, 192, "AMD Instinct MI300X datasheet", "2023-12"),
    Hardware("MI325X", 6000, 1307.4, 256, "AMD Instinct MI325X datasheet", "2024-10"),
    Hardware("MI355X", 8000, 2516.6, 288, "AMD Instinct MI355X datasheet, half of the figure with sparsity", "2025-06"),
    Hardware("L40S", 864, 362, 48, "NVIDIA L40S datasheet", "2023-08"),
    Hardware("L40", 864, 181, 48, "NVIDIA L40 datasheet", "2023-02"),
    Hardware("L4", 300, 121, 24, "NVIDIA L4 datasheet, half of the figure with sparsity", "2023-03"),
    Hardware("A40", 696, 149.7, 48, "NVIDIA A40 datasheet", "2021-05"),
    Hardware("A30", 933, 165, 24, "NVIDIA A30 datasheet", "2022-03"),
    Hardware("A10", 600, 125, 24, "NVIDIA A10 datasheet", "2021-04"),
    Hardware("A10G", 600, 70, 24, "NVIDIA A10G datasheet", "2021-11"),
    Hardware("V100-16GB", 900, 125, 16, "NVIDIA V100 datasheet, SXM2; fp16", "2020-01"),
    Hardware("V100-32GB", 900, 125, 32, "NVIDIA V100 datasheet, SXM2; fp16", "2020-01"),
    Hardware("T4", 320, 65, 16, "NVIDIA T4 datasheet; fp16", "2019-03"),
    Hardware("RTX-A6000", 768, 154.8, 48, "NVIDIA RTX A6000 datasheet, half of the figure with sparsity", "2021-01"),
    Hardware(
        "RTX-6000-ADA",
        960,
        364.2,
        48,
        "NVIDIA RTX 6000 Ada datasheet, half of the 8-bit figure without sparsity",
        "2023-01",
    ),
    Hardware("RTX-PRO-6000", 1792, 503.8, 96, "NVIDIA RTX Blackwell PRO architecture paper", "2025-03"),
    Hardware("RTX-5090", 1792, 209.5, 32, "NVIDIA RTX Blackwell architecture paper; fp32 accumulation", "2025-01"),
    Hardware("RTX-4090", 1008, 165.2, 24, "NVIDIA Ada architecture paper; fp32 accumulation", "2023-01"),
    Hardware("RTX-3090", 936, 71, 24, "NVIDIA Ampere GA102 architecture paper; fp32 accumulation", "2021-01"),
)

ACCELERATORS: Mapping[str, Hardware] = {row.name: row for row in _ROWS}
"""By name, upper case. Settings may add their own; ``find`` also understands common spellings."""

_ALIASES = {
    "H100-SXM": "H100", "H100-SXM5": "H100", "H100-80GB": "H100", "H100-SXM-80GB": "H100", "H100-80GB-HBM3": "H100",
    "H200-SXM": "H200", "B200-SXM": "B200", "A100": "A100-80GB", "A100-SXM4-80GB": "A100-80GB", "A100-SXM4-40GB": "A100-40GB",
    "A100-80GB-SXM": "A100-80GB", "A100-40GB-SXM": "A100-40GB", "V100": "V100-16GB", "TESLA-T4": "T4", "TESLA-V100": "V100-16GB",
    "A6000": "RTX-A6000", "RTXPRO6000": "RTX-PRO-6000", "RTX4090": "RTX-4090", "RTX3090": "RTX-3090", "RTX5090": "RTX-5090",
}  # fmt: skip


def find(name: str, table: Mapping[str, Hardware] = ACCELERATORS) -> Hardware | None:
    """The row for ``name`` in any usual spelling (``NVIDIA A100-SXM4-80GB``, ``h100 sxm 80gb``); None where there is none."""
    if name in table:
        return table[name]
    plain = "-".join(name.upper().replace("_", " ").replace("-", " ").split())
    for prefix in ("NVIDIA-", "GEFORCE-", "TESLA-"):
        plain = plain.removeprefix(prefix)
    spelled = {"-".join(key.upper().replace("_", " ").replace("-", " ").split()): row for key, row in table.items()}
    return spelled.get(plain) or spelled.get(_ALIASES.get(plain, ""))
