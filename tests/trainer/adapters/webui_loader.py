"""An adapter loaded and applied by the WebUI's own extensions-builtin/Lora, without the rest of the WebUI.

    python webui_loader.py WEBUI CHECKPOINT ADAPTER OUT

Its networks*.py run as they are. What they import of the WebUI is stood in for, and the model is a tree of layers that
has the names of LDM's, of OpenCLIP's and of SDXL's modules and the checkpoint's weights. OUT gets the weights after
the adapter was applied, under the checkpoint's names.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

ATTENTION = re.compile(r"(.+\.attn)\.(in_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias)$")


def stand_ins(model: Any, folder: Path) -> dict[str, ModuleType]:
    """The modules of the WebUI that its Lora extension imports; `folder` is an empty one."""
    cpu, place = torch.device("cpu"), str(folder)
    flags = SimpleNamespace(lora_dir=place, lyco_dir_backcompat=place)
    found = {
        "gradio": {},
        "einops": {"rearrange": None},  # OFT's alone
        "modules.shared": {
            "sd_model": model,
            "opts": SimpleNamespace(lora_in_memory_limit=0),
            "cmd_opts": flags,
            "walk_files": lambda *a, **k: (),
        },
        "modules.devices": {"cpu": cpu, "device": cpu, "dtype": torch.float32, "torch_gc": lambda: None},
        "modules.sd_models": {"read_state_dict": load_file, "read_metadata_from_safetensors": metadata},
        "modules.errors": {"display": raise_again},
        "modules.scripts": {},
        "modules.patches": {},
        "modules.cache": {"cached_data_for_file": lambda name, title, path, read: read()},
        "modules.hashes": {"sha256_from_cache": lambda *a, **k: "", "sha256": lambda *a, **k: ""},
        "modules.sd_hijack": {
            "model_hijack": SimpleNamespace(embedding_db=SimpleNamespace(word_embeddings={}))
        },
        "modules.textual_inversion": {},
        "modules.textual_inversion.textual_inversion": {},
        "modules.models": {},
        "modules.models.sd3": {},
        "modules.models.sd3.mmdit": {"QkvLinear": type("QkvLinear", (nn.Linear,), {})},
        "modules": {},
    }
    made = {}
    for name, values in found.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(values)
    for name, module in made.items():
        above, _, own = name.rpartition(".")
        if above:
            setattr(made[above], own, module)
    return made


def metadata(path: str) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def raise_again(error: Exception, task: str) -> None:
    raise error


class Names(nn.Module):
    """A module that only has others in it."""


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    *above, own = path.split(".")
    for name in above:
        if name not in root._modules:
            root.add_module(name, Names())
        root = root._modules[name]  # type: ignore[assignment]
    root.add_module(own, module)


def layer_of(weight: torch.Tensor) -> nn.Module:
    if weight.dim() == 4:
        rows, columns, *kernel = weight.shape
        made: nn.Module = nn.Conv2d(columns, rows, kernel, bias=False)
    elif weight.dim() == 2:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    else:
        made = nn.LayerNorm(weight.shape, bias=False) if weight.dim() == 1 else nn.Identity()
    made.weight = nn.Parameter(weight.clone())
    return made


def tree(tensors: dict[str, torch.Tensor], prefix: str) -> nn.Module:
    """The layers below a prefix, with OpenCLIP's attention as torch has it."""
    root, attentions = Names(), set()
    for name, tensor in tensors.items():
        if not name.startswith(prefix) or tensor.dim() == 0:
            continue
        attention = ATTENTION.match(name)
        if attention and "resblocks" in name:
            attentions.add(attention[1])
        elif name.endswith(".weight"):
            put(root, name.removeprefix(prefix).removesuffix(".weight"), layer_of(tensor))
    for name in attentions:
        width = tensors[f"{name}.out_proj.weight"].shape[0]
        module = nn.MultiheadAttention(width, 1)
        with torch.no_grad():
            module.in_proj_weight.copy_(tensors[f"{name}.in_proj_weight"])
            module.out_proj.weight.copy_(tensors[f"{name}.out_proj.weight"])
        put(root, name.removeprefix(prefix), module)
    return root


@torch.inference_mode()
def main() -> None:
    webui, checkpoint, adapter, out = map(Path, sys.argv[1:])
    tensors = {name: tensor.float() for name, tensor in load_file(checkpoint).items()}
    is_xl = any(name.startswith("conditioner.") for name in tensors)
    prefixes = {"model.": tree(tensors, "model.")}
    model = SimpleNamespace(is_sdxl=is_xl, model=prefixes["model."])
    if is_xl:
        prefixes |= {
            f"conditioner.embedders.{n}.": tree(tensors, f"conditioner.embedders.{n}.") for n in (0, 1)
        }
        embedders = [SimpleNamespace(wrapped=tree_) for name, tree_ in prefixes.items() if name != "model."]
        model.conditioner = SimpleNamespace(embedders=embedders)
    else:
        model.cond_stage_model = prefixes["cond_stage_model."] = tree(tensors, "cond_stage_model.")
    sys.modules |= stand_ins(model, out.with_name("no loras"))
    sys.path.insert(0, str(webui / "extensions-builtin" / "Lora"))
    import network
    import networks

    networks.extra_network_lora = SimpleNamespace(errors={})
    networks.assign_network_names_to_compvis_modules(model)
    on_disk = network.NetworkOnDisk(adapter.stem, str(adapter))
    loaded = networks.load_network(adapter.stem, on_disk)
    loaded.mentioned_name, loaded.te_multiplier, loaded.unet_multiplier = adapter.stem, 1.0, 1.0
    networks.loaded_networks.append(loaded)
    inside = {
        id(found.out_proj) for found in model.network_layer_mapping.values() if hasattr(found, "out_proj")
    }
    for module in model.network_layer_mapping.values():
        if id(module) in inside and isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            continue  # torch's attention uses its weights and never calls it
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.MultiheadAttention)):
            networks.network_apply_weights(module)
    assert not networks.extra_network_lora.errors, networks.extra_network_lora.errors
    print(on_disk.detect_version().name, on_disk.alias, len(loaded.modules))
    applied = {
        prefix + name: value.detach().contiguous()
        for prefix, root in prefixes.items()
        for name, value in root.state_dict().items()
        if prefix + name in tensors and not name.endswith("bias")
    }
    save_file(applied, out)


if __name__ == "__main__":
    main()
