"""In a process of its own: what was imported once cannot be imported otherwise again."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from dreambooth import lean

STORY = """
import gc, json, sys
from dreambooth import lean

lean.start()
lean.start()
told = {"finders": sum(type(finder).__module__ == lean.__name__ for finder in sys.meta_path)}

collections = []
gc.collect()
gc.callbacks.append(lambda phase, about: collections.append(phase))
import torch
told["collector"] = [len(collections), gc.isenabled(), gc.get_freeze_count() > 50_000]
told["torch's loader"] = type(torch.__loader__).__module__, type(torch.__spec__.loader).__module__

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

def beside():
    return [name for name in (*lean.HIDDEN_FROM_DIFFUSERS, "torch._dynamo.eval_frame") if name in sys.modules]

@torch.compiler.disable
def disabled(x):
    return x.sin()

@torch.compiler.disable()
def disabled_too(x):
    return x.tan()

def opaque(x):
    return x.cos()

import torch._dynamo
torch._dynamo.allow_in_graph(opaque)
told["plain"] = [disabled(torch.zeros(1)).item(), disabled_too(torch.zeros(1)).item()]
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], lr=0.1)
weight.sum().backward()
optimizer.step()
told["stepped"] = weight.tolist()
told["beside a step"] = beside()

import torch._dynamo.config
told["one module"] = torch._dynamo.config is sys.modules["torch._dynamo.config"]
told["same spec"] = torch._dynamo.config.__spec__.origin == torch._dynamo.config.__file__
told["real"] = [hasattr(torch._dynamo, "optimize"), torch._dynamo.disable.__module__]
seen = []

def backend(graph, inputs):
    seen.extend(str(getattr(node.target, "__name__", node.target)) for node in graph.graph.nodes)
    return graph.forward

compiled = torch.compile(lambda x: disabled_too(disabled(opaque(x.exp()))).sqrt(), backend=backend)
told["compiled"] = compiled(torch.zeros(1)).item()
told["seen"] = seen

from transformers.models.clip.modeling_clip import CLIPTextModel
told["transformers"] = CLIPTextModel.__name__
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    done = subprocess.run([sys.executable, "-c", STORY], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_starting_twice_is_starting_once(told):
    assert told["finders"] == 1


def test_torch_is_imported_without_looking_for_garbage_and_never_looked_through_again(told):
    assert told["collector"] == [0, True, True]
    assert lean.__name__ not in told["torch's loader"]


def test_neither_models_nor_an_optimizer_step_bring_along_what_no_training_uses(told):
    assert told["beside a step"] == []


def test_the_optimizer_steps_without_the_compiler(told):
    assert told["stepped"] == pytest.approx(
        [1 - 0.1 * 0.01 - 0.1] * 3
    )  # decay, then the rate by a normed gradient


def test_what_is_hidden_from_diffusers_is_there_for_everybody_else(told):
    assert told["transformers"] == "CLIPTextModel"


def test_a_part_of_the_compiler_that_is_asked_for_brings_the_real_one(told):
    assert told["one module"] and told["same spec"]
    assert told["real"] == [True, "torch._dynamo.decorators"]


def test_the_compiler_heeds_the_marks_that_were_made_before_it_was_there(told):
    # cos stands in the graph as the whole function that was allowed, sin and tan are in no graph
    assert "opaque" in told["seen"] and "exp" in told["seen"]
    assert not {"sin", "tan"} & set(told["seen"])
    assert told["plain"] == [0, 0]
    assert told["compiled"] == pytest.approx(math.sqrt(math.tan(math.sin(math.cos(1)))))


def test_importing_the_trainer_changes_nothing_for_others():
    assert not any(type(finder).__module__ == lean.__name__ for finder in sys.meta_path)
