"""The entries of `golden/edm2.json` about networks, their parts and their loss.

Each handler takes an entry and returns what the library computes in the place of its numbers,
by the names these have there.
"""

import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from diffbook_lib import edm2, rng
from diffbook_lib.diffusion import EDM, LogNormal
from diffbook_lib.nets import edm2 as net
from diffbook_lib.nets.edm2 import primitives
from diffbook_lib.nets.edm2.primitives import mp_cat, mp_silu, mp_sum
from diffbook_lib.nets.resample import FIR, FIRUp, down, up


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def resolved(name, golden):
    """The entry of that name, with what it takes from another one."""
    entry = dict(golden[name])
    if name == "pixel_norm_seed":
        entry.setdefault("x", golden["pixel_norm"]["x"])
    if name == "traditional_ema":
        entry.setdefault("theta", golden["ema_track"]["theta"])
    if isinstance(entry.get("parameters"), str):
        letter = re.search(r"UNet([A-Z])", entry["parameters"])[1]
        other = next(key for key in golden if key.startswith(f"seed_unet{letter}_"))
        entry["parameters"] = golden[other]["parameters"]
    return entry


# Primitives


def of_one(function):
    """A function of the entry's x."""
    return lambda entry: {"y": function(f64(entry["x"]))}


def of_two(function):
    """A function of the entry's a and b at each of its t."""

    def handler(entry):
        a, b = f64(entry["a"]), f64(entry["b"])
        return {"y": [function(a, b, t=t) for t in entry["t"]]}

    return handler


def fourier(entry):
    waves = primitives.Fourier(len(entry["freqs"]), math.sqrt(2)).double()
    waves.frequencies, waves.phases = f64(entry["freqs"]), f64(entry["phases"])
    return {"y": waves(f64(entry["x"]))}


def resample(entry):
    """`down_1331`: by the taps 1, 3, 3, 1; `down`: as the networks do it."""
    found = {}
    for name in entry.keys() & {"down", "up"} | {k for k in entry if re.fullmatch(r"\w+_\d+", k)}:
        direction, _, digits = name.partition("_")
        taps = tuple(map(int, digits))
        if direction == "down":
            padding = (len(taps) - 1) // 2
            layer = FIR(2, padding, taps) if taps else down(fir=False)
        else:
            layer = FIRUp(taps=taps) if taps else up(fir=False)
        found[name] = layer.double()(f64(entry["x"]))
    return found


def projected(weight):
    """A layer with that stored weight."""
    weight = f64(weight)
    outputs, inputs, *kernel = weight.shape
    layer = net.Projected(inputs, outputs, kernel[0] if kernel else 0).double()
    layer.weight.data = weight
    return layer


def mp_linear(entry):
    return {"y": projected(entry["weight"])(f64(entry["x"]))}


def mp_conv(entry):
    layer, x, gain = projected(entry["weight_in"]), f64(entry["x"]), entry["config"]["gain"]
    assert layer.padding == entry["config"]["padding"]
    found = {"y_eval": gain * layer(x)}
    net.project(layer)
    y = gain * layer(x)
    (y * f64(entry["upstream"])).sum().backward()
    weight, grad = layer.weight.detach(), layer.weight.grad
    return found | {
        "y_train": y,
        "weight_after_train": weight,
        "weight_rms_after_train": weight.flatten(1).square().mean(dim=1).sqrt(),
        "grad": grad,
        "row_dot_grad_weight": (grad * weight).flatten(1).sum(dim=1),
    }


# Networks: their parameters are filled by a rule, in the order of the entry's list.

OFFICIAL_LEAVES = {
    "emb_gain": "gain",
    "conv_res0.weight": "conv1.weight",
    "emb_linear.weight": "modulation.weight",
    "conv_res1.weight": "conv2.weight",
    "conv_skip.weight": "shortcut.weight",
    "attn_qkv.weight": "attention.qkv.weight",
    "attn_proj.weight": "attention.out.weight",
}
OFFICIAL_ENDS = {
    "out_gain": "gain",
    "emb_noise.weight": "embedding.layers.0.weight",
    "emb_label.weight": "embedding.label.weight",
    "out_conv.weight": "head.weight",
}
SEED_LEAVES = {
    "res.linear.weight": "modulation.weight",
    "res.gain.g": "gain",
    "res.shortcut.weight": "shortcut.weight",
    "res.conv1.weight": "conv1.weight",
    "res.conv2.1.weight": "conv2.weight",
    "attn.projection.weight": "attention.qkv.weight",
    "attn.output.weight": "attention.out.weight",
}
SEED_ENDS = {
    "image_proj.weight": "stem.weight",
    "embedding.fourier.frequencies": "embedding.fourier.frequencies",
    "embedding.fourier.phases": "embedding.fourier.phases",
    "embedding.linear1.weight": "embedding.layers.0.weight",
    "embedding.linear2.weight": "embedding.layers.1.weight",
    "final.0.weight": "head.weight",
    "final.1.g": "gain",
    "final.2.weight": "head.weight",
}
SEED_PLACES = {"down": "encoder.{}", "middle": "middle.{}", "up": "decoder.{}"}


def official_names(names):
    """Their names of the U-Net's parameters -> ours."""
    found, places = {}, {"enc": [], "dec": []}
    for name in (name.removeprefix("unet.") for name in names):
        side, _, rest = name.partition(".")
        if name in OFFICIAL_ENDS:
            found[name] = OFFICIAL_ENDS[name]
        elif rest.endswith("_conv.weight"):
            found[name] = "stem.weight"
        else:
            block, _, leaf = rest.partition(".")
            if middle := re.search(r"_in(\d)$", block):
                place = f"middle.{middle[1]}"
            else:
                seen = places[side]
                seen += [block] * (block not in seen)
                place = f"{'encoder' if side == 'enc' else 'decoder'}.{seen.index(block)}"
            found[name] = f"{place}.{OFFICIAL_LEAVES[leaf]}"
    return found


def seed_name(name):
    """Their name of a parameter of a U-Net -> ours."""
    if name in SEED_ENDS:
        return SEED_ENDS[name]
    where, number, leaf = re.match(r"(down|up|middle)\.?(\d)\.(.*)", name).groups()
    number = int(number) - (where == "middle")
    return f"{SEED_PLACES[where].format(number)}.{SEED_LEAVES[leaf]}"


def filled(i, shape, fill):
    """The i-th parameter by the rule of the file."""
    if not shape:
        return torch.tensor(0.4 + 0.1 * (i % 5))
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    angle = 0.01 * fill["a"] * k * k + fill["a"] * k + fill["b"] * i
    return (math.sqrt(2) * angle.cos()).reshape(shape).float()


def filled_buffer(j, shape, fill):
    per_number, per_buffer, start = fill["buffer"]
    k = torch.arange(*shape, dtype=torch.float64)
    return (2 * math.pi * (per_number * k + per_buffer * j + start).sin()).float()


def input_of(entry):
    x = entry["config"]["x"]
    k = torch.arange(math.prod(x["shape"]), dtype=torch.float64)
    return (x["frequency"] * k + x["phase"]).sin().reshape(x["shape"]).float()


def official_parts(config):
    """The official G, with an entry's settings."""
    balance = lambda name, default: partial(mp_sum, t=config.get(name, default))
    return replace(
        net.parts_of("G", "official"),
        residual_sum=balance("res_balance", 0.3),
        attention_sum=balance("attn_balance", 0.3),
        label_sum=balance("label_balance", 0.5),
        cat=partial(mp_cat, t=config.get("concat_balance", 0.5)),
        head_channels=config.get("channels_per_head", 64),
        uncertainty_features=config.get("logvar_channels", 128),
    )


def alike(weight, heads):
    """The rows of their query, key and value weight, which alternate, in our order: all queries,
    all keys, all values."""
    return weight.unflatten(0, (heads, -1, 3)).permute(2, 0, 1, 3, 4, 5).flatten(0, 2)


def in_our_order(state, head_channels):
    """The weights by our names, with queries, keys and values in our order."""
    return {
        name: alike(weight, len(weight) // 3 // head_channels)
        if name.endswith("qkv.weight")
        else weight
        for name, weight in state.items()
    }


def block(entry):
    config, weights = entry["config"], entry["weights"]
    resample = {"keep": None, "up": up(fir=False), "down": down(fir=False)}
    parts = official_parts(config)
    module = parts.block(
        config["in_channels"],
        config["out_channels"],
        config["emb_channels"],
        parts,
        resample=resample[config["resample_mode"]],
        decodes=config["flavor"] == "dec",
        attends=config["attention"],
    )
    state = {OFFICIAL_LEAVES[name]: torch.tensor(value) for name, value in weights.items()}
    module.load_state_dict(in_our_order(state, parts.head_channels))
    x, embedding = torch.tensor(entry["x"]), torch.tensor(entry["emb"])
    return {"y": module.eval()(x, embedding)}


def official_network(entry):
    """U-Net and u(sigma), filled."""
    config = entry["config"]
    parts = official_parts(config)
    unet = net.EDM2UNet(
        config["img_channels"],
        config["img_channels"],
        config["img_resolution"],
        config["model_channels"],
        config["channel_mult"],
        config["num_blocks"],
        config["attn_resolutions"],
        parts,
        classes=config["label_dim"],
    )
    uncertainty = net.Uncertainty(parts)
    values = {
        name: filled(i, shape, config["fill"])
        for i, (name, shape) in enumerate(entry["parameters"])
    }
    buffers = {
        name.replace("freqs", "frequencies"): filled_buffer(j, shape, config["fill"])
        for j, (name, shape) in enumerate(entry["buffers"])
    }
    head = {"linear.weight": values.pop("logvar_linear.weight")}
    state = {ours: values[f"unet.{name}"] for name, ours in official_names(values).items()}
    for end in ("frequencies", "phases"):
        state[f"embedding.fourier.{end}"] = buffers[f"unet.emb_fourier.{end}"]
        head[f"fourier.{end}"] = buffers[f"logvar_fourier.{end}"]
    unet.load_state_dict(in_our_order(state, parts.head_channels))
    uncertainty.load_state_dict(head)
    return unet.eval(), uncertainty


@torch.no_grad()
def precond(entry):
    unet, uncertainty = official_network(entry)
    x, sigma = input_of(entry), torch.tensor(entry["sigma"])
    one_hot = torch.tensor(entry["class_labels"])
    label = one_hot.argmax(dim=1)
    assert torch.equal(torch.eye(one_hot.shape[1])[label], one_hot)
    edm = EDM(entry["config"].get("sigma_data", 0.5))
    denoiser = edm.denoiser(unet)
    trained = [*unet.parameters(), *uncertainty.parameters()]
    return {
        "D": denoiser(x, sigma, label),
        "D_null": denoiser(x, sigma),
        "logvar": uncertainty(edm.c_noise(sigma)),
        "num_params": sum(p.numel() for p in trained),
    }


@torch.no_grad()
def seed_unet(letter, entry):
    config = entry["config"]
    channels, size, _ = config["image_shape"]
    attention = [size >> i for i, attends in enumerate(config["is_attn"]) if attends]
    unet = net.EDM2UNet(
        channels,
        channels,
        size,
        config["n_channels"],
        config["ch_mults"],
        config["n_blocks"] - 1,
        attention,
        net.parts_of(letter, "seed"),
        dropout=config["dropout"],
    )
    values = {
        seed_name(name): filled(i, shape, config["fill"])
        for i, (name, shape) in enumerate(entry["parameters"])
    }
    for end in ("frequencies", "phases"):
        values[f"embedding.fourier.{end}"] *= 2 * math.pi
    unet.load_state_dict(values)
    y = unet.eval()(input_of(entry), torch.tensor(entry["c_noise"]))
    return {"y": y, "num_trainable": sum(p.numel() for p in unet.parameters())}


# Preconditioning and loss


def edm_precond(entry):
    edm, sigma = EDM(entry["sigma_data"]), f64(entry["sigma"])
    names = ("c_skip", "c_in", "c_noise", "c_out")
    return {name: getattr(edm, name)(sigma) for name in names} | {"loss_weight": edm.weight(sigma)}


def loss(entry):
    """Every pixel as an image of its own, so that nothing is averaged."""
    names = ("images", "rnd_normal", "unit_noise", "denoised", "logvar")
    images, *_ = values = torch.broadcast_tensors(*(f64(entry[name]) for name in names))
    x, ln_sigma, noise, denoised, u = (value.reshape(-1, 1) for value in values)
    edm = EDM(entry["sigma_data"], LogNormal(entry["P_mean"], entry["P_std"]))
    draws = iter([ln_sigma[:, 0], noise])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "normal", lambda *args: next(draws))
        draw = edm.draw(x, rng.generator(0, "loss"))
    at = draw.sigma[:, None]
    output = (denoised - edm.c_skip(at) * draw.noisy) / edm.c_out(at)
    problem = edm2.EDM2Loss(edm, lambda noise: u[:, 0])
    found, _ = problem.error(lambda x, noise, label: output, draw)
    return {
        "sigma": draw.sigma.reshape(images.shape)[:, :1, :1, :1],
        "noisy_input": draw.noisy.reshape(images.shape),
        "loss": found.reshape(images.shape),
    }


HANDLERS = {
    "normalize_default": of_one(primitives.normalize),
    "normalize_tiny": of_one(primitives.normalize),
    "pixel_norm": of_one(primitives.pixel_norm),
    "pixel_norm_seed": of_one(primitives.pixel_norm_root),
    "mp_silu": of_one(mp_silu),
    "mp_sum": of_two(mp_sum),
    "mp_cat": of_two(mp_cat),
    "mp_fourier": fourier,
    "resample": resample,
    "mpconv_3x3": mp_conv,
    "mp_linear": mp_linear,
    "block_*": block,
    "precond_tiny": precond,
    "seed_unetC_*": partial(seed_unet, "C"),
    "seed_unetE_*": partial(seed_unet, "E"),
    "seed_unetG_*": partial(seed_unet, "G"),
    "edm_precond": edm_precond,
    "edm2_loss": loss,
}
