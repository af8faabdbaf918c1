"""Latents turned to independent axes by FastICA, in the layers next to the code.

The prior of a VAE is the same in all directions. Where latents have equal noise, so is its loss: it
learns the diagonals of x and y as well as x and y. Independent factors single out their axes:
Hyvärinen 1999, https://doi.org/10.1109/72.761722. No labels are used.
"""

import torch
from sklearn.decomposition import FastICA
from torch import Tensor, nn

from models.networks import linear_layers
from models.vae import VAE, gaussian_kl

ACTIVE_KL = 0.3  # nats; latents with less stay as they are


@torch.no_grad()
def rotate_latents(vae: VAE, mu: Tensor, logvar: Tensor) -> None:
    """Replace the active latents by their independent components, each with second moment 1.

    The decoder draws the same images from the new means as from the old ones.

    Args:
        mu, logvar: the posterior of a sample of images, each (N, D), float32.
    """
    active = (gaussian_kl(mu, logvar).mean(0) > ACTIVE_KL).nonzero().flatten().cpu()
    if len(active) < 2:
        return
    ica = FastICA(whiten="unit-variance", fun="cube", max_iter=500, random_state=0)
    ica.fit(mu[:, active].double().cpu().numpy())
    matrix, mean = torch.from_numpy(ica.components_), torch.from_numpy(ica.mean_)

    # A component is matrix @ (mu - mean); the noise of each latent adds to its variance.
    variance = logvar[:, active].exp().mean(0).double().cpu()
    second_moment = 1 + matrix.square() @ variance
    matrix /= second_moment.sqrt()[:, None]
    noise = matrix.square() * variance  # of each latent in each component
    share = noise / noise.sum(1, keepdim=True)
    log_ratio = noise.sum(1).log() - share @ variance.log()

    # The head gives the components; the logarithm of their noise is a mean over the latents.
    head, first = layers_beside_code(vae)
    device, of_logvar = head.weight.device, active + head.out_features // 2
    matrix, share, mean, log_ratio = (
        tensor.float().to(device) for tensor in (matrix, share, mean, log_ratio)
    )
    head.weight[active] = matrix @ head.weight[active]
    head.bias[active] = matrix @ (head.bias[active] - mean)
    head.weight[of_logvar] = share @ head.weight[of_logvar]
    head.bias[of_logvar] = share @ head.bias[of_logvar] + log_ratio

    # The decoder turns them back. Adam's means of slopes along the old axes are dropped.
    columns = first.weight[:, active]
    first.weight[:, active] = columns @ matrix.inverse()
    first.bias += columns @ mean
    for parameter in (head.weight, head.bias, first.weight):
        state = vae.optimizers["vae"].state[parameter]
        if "exp_avg" in state:  # Adagrad has none
            state["exp_avg"].zero_()


def layers_beside_code(vae: VAE) -> tuple[nn.Linear, nn.Linear]:
    """The layers that give mu and logvar, and that take the code. ValueError if one is missing."""
    heads, firsts = linear_layers(vae.encoder), linear_layers(vae.decoder)
    dims = vae.latent_dim, vae.latent_dim + vae.categories
    if not heads or heads[-1].out_features not in [2 * dim for dim in dims]:
        raise ValueError("model.rotate_at: the last layer of the encoder is not linear")
    if not firsts or firsts[0].in_features != dims[1]:
        raise ValueError("model.rotate_at: the first layer of the decoder is not linear")
    return heads[-1], firsts[0]
