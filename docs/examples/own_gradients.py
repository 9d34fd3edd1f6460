"""How noisy are your own gradients, and whose noise is it? With `VarianceMeter`, for any pipeline.

    python docs/examples/own_gradients.py

A render's gradient is estimated twice with other draws. The meter separates what the choice of the render adds
("between") from what timesteps and noises add ("within"), with 95 % intervals, and says which K would pay.
"""

from __future__ import annotations

import argparse

import torch

from carv3d import Carv
from carv3d.accounting import Gradient, VarianceMeter, best_resamples
from carv3d.teachers import DiffusersTeacher


def main() -> None:
    """Measure the gradient of an image that is seen from a random side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renders", type=int, default=12)
    options = parser.parse_args()
    teacher = DiffusersTeacher()
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, teacher.image_size, teacher.image_size, generator=rng, requires_grad=True)
    for resamples in (1, 4):
        carv, meter = Carv(teacher, resamples=resamples), VarianceMeter()
        for _ in range(options.renders):
            azimuth = 360 * torch.rand(1, generator=rng) - 180  # your own "render" depends on it
            condition = teacher.text_condition("a red chair", azimuth=azimuth, elevation=torch.tensor([20.0]))
            latents = teacher.encode(image)
            gradient = Gradient(latents, [image])  # from an fbar to the flat gradient of the parameters
            pair = [gradient(carv.estimate(latents, condition, rng).fbar) for _ in range(2)]
            meter.add(torch.stack(pair))
        parts = {"total": meter.total, "between": meter.between, "within": meter.within}
        said = ", ".join(f"{name} {part.value:.3g} ({part.low:.3g} to {part.high:.3g})" for name, part in parts.items())
        print(f"K = {resamples}: {said}")
        if resamples == 1:
            best = best_resamples(4.0, 1.0, meter.between.value, meter.within.value)
            print(f"if a render costs as much as 4 draws, K = {best:.1f} pays most")


if __name__ == "__main__":
    main()
