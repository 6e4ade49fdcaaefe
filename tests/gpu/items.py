"""All items, most important first: what a cut-off run has shown is worth the most."""

from __future__ import annotations

from tests.gpu.item import Item

PARITY = {"files": ("tests/parity/test_parity_gpu.py", "tests/test_numerics.py", "tests/test_devices.py")}
TRAINING = {"files": ("tests/training/test_training_gpu.py", "tests/tokenizer/test_tokenizer_discriminator.py")}
TRAINED = {"batch": 64, "least_fraction": 0.45}
PATCHGAN = {"batch": 64, "adversarial": True}

# Right at all, then as fast as it should be, then everything else; compiling takes longest and comes last
ITEMS = (
    Item("peak", "plain matrix products", 30, "tests.gpu.speed.peak"),
    Item("parity-generator", "recorded logits and greedy samples, float32", 40, "tests.gpu.parity.generator"),
    Item("parity", "recorded tokens, losses, gradients; equality with the CPU", 90, "tests.gpu.suite.run", PARITY),
    Item("latency", "one image, bfloat16", 60, "tests.gpu.speed.sample", {"batch": 1, "most_seconds": 0.060}),
    Item("graphs", "samples of a CUDA graph, bfloat16", 40, "tests.gpu.graphs.replayed", {"batch": 8}),
    Item("latency-launched", "one image without a graph", 40, "tests.gpu.speed.sample", {"batch": 1, "graph": False}),
    Item("sample-64", "64 images, bfloat16", 40, "tests.gpu.speed.sample", {"batch": 64, "least_fraction": 0.35}),
    Item("train-generator", "a step, bf16", 40, "tests.gpu.speed.train_generator", TRAINED),
    Item("train-tokenizer", "a step, bf16", 40, "tests.gpu.speed.train_tokenizer", TRAINED),
    Item("attention", "kernels of sampling, encoding and training", 40, "tests.gpu.attention.fused", {"batch": 8}),
    Item("agreement-bf16", "bfloat16 beside float32", 40, "tests.gpu.agreement.compare", {"dtype": "bfloat16"}),
    Item("agreement-fp16", "float16 beside float32", 40, "tests.gpu.agreement.compare", {"dtype": "float16"}),
    Item("encode", "64 images, bfloat16", 30, "tests.gpu.speed.encode", {"batch": 64}),
    Item("reconstruct", "64 images, bfloat16", 30, "tests.gpu.speed.reconstruct", {"batch": 64}),
    Item("sample-8", "8 images, bfloat16", 30, "tests.gpu.speed.sample", {"batch": 8}),
    Item("sample-256", "256 images, bfloat16", 50, "tests.gpu.speed.sample", {"batch": 256}),
    Item(
        "curves-bf16", "a training in bf16 beside float32", 40, "tests.gpu.trainings.precision", {"precision": "bf16"}
    ),
    Item(
        "curves-fp16", "a training in fp16 beside float32", 40, "tests.gpu.trainings.precision", {"precision": "fp16"}
    ),
    Item("training", "loss scaling, resumed; the whole objective in bf16", 60, "tests.gpu.suite.run", TRAINING),
    Item("nccl-1", "a training over NCCL, one process", 50, "tests.gpu.trainings.together", {"processes": 1}),
    Item("nccl-2", "a training over NCCL, two processes", 60, "tests.gpu.trainings.together", {"processes": 2}),
    Item("resume", "a training that changes from CPU to GPU, and back", 60, "tests.gpu.trainings.resume"),
    Item("memory", "estimates; a sample after one that did not fit", 40, "tests.gpu.memory.exhausted", {"batch": 64}),
    Item("inception", "features of 64 images, float32", 40, "tests.gpu.speed.inception", {"batch": 64}),
    Item("train-patchgan", "a step with PatchGAN, bf16", 40, "tests.gpu.speed.train_tokenizer", PATCHGAN),
    Item("compile", "a compiled step beside a plain one", 120, "tests.gpu.compiled.train_generator", {"batch": 64}),
)
