"""One run gives four D: a tiny Llama on 0.3 to 2.5 million bytes, three of the runs being branches off the longest.

    python -m experiments.sweep --config=configs/sweeps/wsd_branches.py --workdir=runs/wsd-branches
    python -m experiments.compare --workdir=runs/wsd-branches --metric=validation/loss

Unquantized, with Muon and without. The learning rate is constant until it falls in the last fifth of the steps. The
longest run keeps its checkpoints of every 240 steps; each other one goes on from the last of these before its own
decay: 2,820 steps are taken, where 4,500 are without branches. The results are the same, to the bit.
"""

from ml_collections import ConfigDict

STEPS = (300, 600, 1200, 2400)  # of 1024 tokens; their decays begin after 240, 480, 960 and 1920


def get_config() -> ConfigDict:
    """The sweep: its base config, and grids of fields to set."""
    grid = {
        'method': ['bf16'],
        'optimizer.name': ['adamw', 'muon'],
        'optimizer.schedule': ['wsd'],
        'checkpoint_every': [240],
        'keep_period': [240],
        'total_steps': STEPS,
    }
    return ConfigDict(
        dict(name='wsd-branches', config='configs/capybara.py:size=tiny-27k', grids=[grid], branches=True)
    )
