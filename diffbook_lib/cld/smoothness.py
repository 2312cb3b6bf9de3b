"""How complicated the function is that a network must learn (paper Section 3.1,
Appendix E.1)."""

import torch
from torch import Tensor

from diffbook_lib import exact, rng
from diffbook_lib.cld.process import Langevin
from diffbook_lib.diffusion import VP, Net


def xi(
    process: Langevin,
    data: exact.GaussianMixture,
    t: float,
    n: int,
    generator: torch.Generator,
) -> float:
    """E |grad_v log p_t(x, v) + v / M|^2 over n draws of (x_t, v_t): how far the
    exact velocity score of mixture data is from that of the prior."""
    law = process.marginal(data, t)
    u = law.sample(n, generator)
    departure = law.score(u)[:, data.dim :] + u[:, data.dim :] / process.M
    return float(departure.square().sum(dim=1).mean())


def xi_vp(
    kernel: VP,
    data: exact.GaussianMixture,
    t: float,
    n: int,
    generator: torch.Generator,
) -> float:
    """E |grad log p_t(x) + x|^2 over n draws of x_t: the same for a diffusion without
    velocity."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = float(kernel.alpha(time)), float(kernel.sigma(time))
    x = data.sample(n, generator)
    x = x + sigma * rng.normal(x.shape, generator, torch.float64)  # x_t / alpha
    departure = data.score(x, sigma) / alpha + alpha * x
    return float(departure.square().sum(dim=1).mean())


def jacobian_norm(net: Net, u: Tensor, t: Tensor) -> Tensor:
    """|J|_F^2 (batch,) of the network's Jacobian with respect to its input u (batch,
    ...), exact: one backward pass an output dimension."""
    u = u.detach().requires_grad_()
    outputs = net(u, t, None).flatten(1).unbind(dim=1)
    rows = [
        torch.autograd.grad(out.sum(), u, retain_graph=True)[0] for out in outputs
    ]
    return torch.stack([row.flatten(1).square().sum(dim=1) for row in rows]).sum(
        dim=0
    )
