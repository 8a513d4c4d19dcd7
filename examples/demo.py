"""The main job: two training steps on five kinds of machine.

Run it with ``make demo``.
"""

import perfmodel as pm

DEVICES = ("nvidia-h100-sxm-80gb", "nvidia-a100-sxm-80gb", "google-tpu-v5p", "amd-epyc-9654", "intel-agilex-7-m-agm039")


def main() -> None:
    """Capture Llama-3.1-8B and the BERT fine-tuning step, predict both on every device."""
    from perfmodel.report import prediction_text
    from perfmodel.report.text import graph_text, seconds, table

    llama = pm.capture("llama-3.1-8b", batch=1, seq_len=4096, optimizer="adamw", progress=print_phase)
    bert = pm.capture("bert-base-uncased", batch=32, seq_len=128, optimizer="adam", progress=print_phase)
    for step in (llama, bert):
        print(graph_text(step, pm.closed_form_flops(step)))
        print()
    rows = []
    for step in (llama, bert):
        for name in DEVICES:
            device = pm.load_device(name)
            p = pm.predict(step, device)
            fits = f"{p.memory.peak / 2**30:,.1f} GiB, {'fits' if p.fits else 'too large'}"
            tokens = f"{p.tokens_per_second:,.0f}"
            rows.append((step.name, name, p.runtime, seconds(p.step_time), tokens, f"{p.mfu:.1%}", fits))
    print(prediction_text(pm.predict(llama, DEVICES[0])))
    print()
    print(table(("model", "device", "runtime", "step", "tokens/s", "MFU", "peak memory"), rows))
    print("\nNo interval yet: no measured run has checked these devices' constants, and the FPGA's never.")


def print_phase(phase: str) -> None:
    """Say what the capture is doing."""
    print(f"capturing: {phase}", flush=True)


if __name__ == "__main__":
    main()
