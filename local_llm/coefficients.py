"""Step-time coefficients known before anything has been measured on the machine at hand. Pure data.

The GPU rows are least-squares fits to published runs of vLLM 0.19 serving Llama-3.1-8B (raw data of arXiv:2606.11690,
512 prompt and 256 output tokens, 1 to 100 requests a second): throughput within 4 %, median TPOT within 24 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from local_llm.datamodels import EngineCoefficients

UNKNOWN = "unknown"
"""The row of an engine of which nothing is known."""
EMBEDDED_CPU = "embedded-cpu"
"""The row of the embedded engine."""
_ROWS = (
    EngineCoefficients(
        name="h100-8b-fp16",
        t0_s=0.0063687264452492445,
        c_seq_s=1.803745180550249e-05,
        c_kv_s=8.708708098585172e-08,
        c_prefill_s=3.503624016253129e-05,
        c_att_s=2e-10,
        practical_batch=100.0,
        calibrated=True,
        api_s=0.013627791553418842,
    ),
    EngineCoefficients(
        name="h100-8b-fp8",
        t0_s=0.004574914117506212,
        c_seq_s=1.978709621803516e-05,
        c_kv_s=6.183356475493855e-08,
        c_prefill_s=2.7318783408938373e-05,
        c_att_s=2e-10,
        practical_batch=100.0,
        calibrated=True,
        api_s=0.013333409407279624,
    ),
    EngineCoefficients(
        name="a100-8b-fp16",
        t0_s=0.011954078598130354,
        c_seq_s=3.498356194599245e-05,
        c_kv_s=1.954879211990205e-07,
        c_prefill_s=7.19262724035729e-05,
        c_att_s=4e-10,
        practical_batch=100.0,
        calibrated=True,
        api_s=0.018750134058725203,
    ),
    # SmolLM2-135M-Instruct Q4_1 under llama.cpp on one CPU thread, measured in CPU seconds: 6 ms a prompt token (7.5 at
    # 2000), 10 to 20 ms a token alone, 27 ms a step of two and 40 ms a step of four: batching wins little.
    EngineCoefficients(
        name=EMBEDDED_CPU,
        t0_s=0.006,
        c_seq_s=0.007,
        c_kv_s=9e-06,
        c_prefill_s=0.0065,
        c_att_s=1.6e-06,
        practical_batch=4.0,
        api_s=0.005,
    ),
    # An engine that tells nothing: a mid-range card, slow enough to be careful and fast enough to be used.
    EngineCoefficients(
        name=UNKNOWN,
        t0_s=0.02,
        c_seq_s=1e-04,
        c_kv_s=3e-07,
        c_prefill_s=1.5e-04,
        c_att_s=1e-09,
        practical_batch=8.0,
        api_s=0.02,
    ),
)

PRESETS: Mapping[str, EngineCoefficients] = MappingProxyType({row.name: row for row in _ROWS})


def may_flatter(coefficients: EngineCoefficients) -> bool:
    """Whether an engine may be slower than these say: those of a GPU by name, which it perhaps does not run on.

    Given figures were measured, or are what the operator stands for. The unknown engine is slow as it is: with care on
    top, an empty one would turn the first prompts away. The embedded one promises much less than it can.
    """
    return coefficients.name in PRESETS and coefficients.name not in (UNKNOWN, EMBEDDED_CPU)
