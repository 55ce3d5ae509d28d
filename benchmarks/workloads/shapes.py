"""The shapes of the parameters of well-known models, from their papers and configurations."""

from __future__ import annotations

from itertools import pairwise

Shape = tuple[int, ...]


def _linear(inputs: int, outputs: int) -> list[Shape]:
    """Weight and bias of ``torch.nn.Linear``."""
    return [(outputs, inputs), (outputs,)]


def _norm(width: int) -> list[Shape]:
    """Weight and bias of a layer normalisation."""
    return [(width,), (width,)]


def _conv(inputs: int, outputs: int, kernel: int) -> list[Shape]:
    """Weight of a convolution without bias, then weight and bias of its batch normalisation."""
    return [(outputs, inputs, kernel, kernel), *_norm(outputs)]


def perceptron(*sizes: int) -> list[Shape]:
    """Linear layers from the first size to the last."""
    return [shape for inputs, outputs in pairwise(sizes) for shape in _linear(inputs, outputs)]


def gpt2_small() -> list[Shape]:
    """GPT-2 small: Radford et al., Language Models are Unsupervised Multitask Learners, 2019.

    The linear layers are stored (inputs, outputs), as published; the head shares the embedding.
    """
    vocabulary, context, layers, width = 50257, 1024, 12, 768

    def linear(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    attention = linear(width, 3 * width) + linear(width, width)
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    block = _norm(width) + attention + _norm(width) + mlp
    return [(vocabulary, width), (context, width), *(layers * block), *_norm(width)]


def resnet50() -> list[Shape]:
    """ResNet-50: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1."""
    shapes = _conv(3, 64, 7)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        outputs = 4 * width
        for block in range(blocks):
            shapes += _conv(inputs, width, 1) + _conv(width, width, 3) + _conv(width, outputs, 1)
            if block == 0:
                shapes += _conv(inputs, outputs, 1)  # the shortcut, where the width changes
            inputs = outputs
    return shapes + _linear(inputs, 1000)


def vit_base() -> list[Shape]:
    """ViT-B/16 for 1,000 classes: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021.

    Table 1 has width and depth; queries, keys and values are one matrix, as in the authors' code
    and in torchvision's. The images are 224 x 224: 14 x 14 patches and the class token.
    """
    width, layers, patch = 768, 12, 16
    attention = _linear(width, 3 * width) + _linear(width, width)
    block = _norm(width) + attention + _norm(width) + perceptron(width, 4 * width, width)
    embedding: list[Shape] = [
        (1, 1, width), (1, 14 * 14 + 1, width), (width, 3, patch, patch), (width,)
    ]  # fmt: skip
    return [*embedding, *(layers * block), *_norm(width), *_linear(width, 1000)]


def bert_base() -> list[Shape]:
    """BERT-base, uncased, with its pooler: Devlin et al., BERT, NAACL 2019, section 3.

    Vocabulary and segments are those of the published configuration.
    """
    vocabulary, context, segments, layers, width = 30522, 512, 2, 12, 768
    attention = 4 * _linear(width, width)
    block = attention + _norm(width) + perceptron(width, 4 * width, width) + _norm(width)
    embeddings: list[Shape] = [(size, width) for size in (vocabulary, context, segments)]
    return [*embeddings, *_norm(width), *(layers * block), *_linear(width, width)]


def llama_1b() -> list[Shape]:
    """Llama 3.2 1B: Grattafiori et al., The Llama 3 Herd of Models, 2024; its model card.

    Grouped queries (32 heads of 64, 8 for keys and values), no biases; the head shares the
    embedding.
    """
    vocabulary, layers, width, keys, hidden = 128256, 16, 2048, 512, 8192
    attention: list[Shape] = [(width, width), (keys, width), (keys, width), (width, width)]
    mlp: list[Shape] = [(hidden, width), (hidden, width), (width, hidden)]
    return [(vocabulary, width), *(layers * [*attention, *mlp, (width,), (width,)]), (width,)]


def actor_critic() -> list[list[Shape]]:
    """Actor and twin critics of SAC: Haarnoja et al., Soft Actor-Critic Algorithms and
    Applications, 2018, table 1: two hidden layers of 256.

    For 17 observations and 6 actions, those of the environment HalfCheetah. Each network is a
    parameter group; the actor gives mean and logarithm of the deviation of each action.
    """
    observations, actions, hidden = 17, 6, 256
    actor = perceptron(observations, hidden, hidden, 2 * actions)
    critic = perceptron(observations + actions, hidden, hidden, 1)
    return [actor, critic + critic]


def lora_adapters() -> list[Shape]:
    """Adapters of rank 8 for every linear layer of a Llama of 7B: Hu et al., LoRA, ICLR 2022.

    Touvron et al., LLaMA, 2023, table 2 has width and depth. Each of the 7 layers of the 32 blocks
    has a pair: (rank, inputs) and (outputs, rank).
    """
    rank, layers, width, hidden = 8, 32, 4096, 11008
    linears = [*(4 * [(width, width)]), (width, hidden), (width, hidden), (hidden, width)]
    pairs: list[Shape] = []
    for inputs, outputs in linears:
        pairs += [(rank, inputs), (outputs, rank)]
    return layers * pairs


def embeddings() -> list[Shape]:
    """One huge table ahead of a small network, as in models that recommend.

    Naumov et al., Deep Learning Recommendation Model for Personalization and Recommendation
    Systems, 2019; the gradient is dense.
    """
    rows, width = 1_000_000, 64
    return [(rows, width), *perceptron(width, 512, 256, 1)]
