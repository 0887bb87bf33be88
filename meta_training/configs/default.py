"""Every setting of meta-training, with its default. Other configs start from this one and change what they need.

    datarater train --config=meta_training/configs/default.py --workdir=work \
        --config.data.inner='corpus/*.jsonl.gz' --config.data.outer='target/*.jsonl.gz'

The paper (arXiv 2505.17895) states: 2 inner updates, population 8, batches of 128, Adam with
decoupled weight decay 0.1, 100 steps of linear warm-up, clipping at 0.01, length 2048, a 50M rater
over 400M inner models. Where a default differs, it is because this one is made to learn in minutes
on a CPU; the comment says so.

It does not state, so these are ours: the tokenizer, widths, heads and layers, learning rates,
Adam's decay rates and epsilons, the inner models' lifetime. Nor does it state these, which no field
changes:
- the rater's score is the mean over valid tokens of the last hidden states, times a head without a
  bias;
- blocks (the paper: Chinchilla's family) have RMSNorm before each part, rotary positions and a
  gated MLP, no biases;
- the inner Adam's epsilon stands inside its root, `eps_root`, and is 0 outside.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the default config."""
    config = ConfigDict()
    config.seed = 0
    config.meta_steps = 200  # paper: a checkpoint at 8,000
    config.inner_updates = 2  # T, as in the paper
    config.inner_batch = 32  # B; paper: 128
    config.outer_batch = 16  # paper: 128
    config.length = 256  # L, tokens of a window; paper: 2048

    config.data = ConfigDict()
    config.data.inner = ""  # the pool: paths or globs joined by commas, or a dataset as tfds:c4/en:train; must be given
    config.data.outer = ""  # of the held-out target; empty: a share of the pool is held out
    config.data.outer_share = 0.05  # that share, by a hash of each document
    config.data.text_field = "text"
    config.data.windows = (
        "packed"  # as in the paper; or "document": windows of one document each, padded
    )
    config.data.tfds_data_dir = (
        ""  # folder of prepared TensorFlow datasets; empty: their own default
    )
    config.data.shuffle_buffer = 4096  # windows of a TensorFlow dataset that are shuffled together
    config.data.minimum_length = 32  # with "document": shorter last windows are left out

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "byte"  # or "bpe", trained on the inner set
    config.tokenizer.vocabulary_size = 8192  # of the BPE
    config.tokenizer.training_documents = 20_000  # documents that the BPE is trained on, at most

    config.rater = ConfigDict()  # 0.6M parameters, of which 0.5M in the n-gram table; paper: 50M
    config.rater.width = 64
    config.rater.heads = 2
    config.rater.mlp_width = 128
    config.rater.layers = 1
    config.rater.ngram_orders = (2,)  # ours; () for none
    config.rater.ngram_rows = 8192
    config.rater.dtype = (
        "float32"  # or "bfloat16": computation only; parameters and gradients' sums stay in float32
    )
    config.rater.rematerialise_blocks = False  # recompute each block in the backward pass
    config.rater.scan_blocks = (
        False  # run the blocks in a loop: compiles faster, and keeps recomputation in order
    )
    config.rater.attention = "plain"  # or "blocks": exact too, without L x L numbers a head
    config.rater.attention_block = 256  # keys in a block

    config.inner_model = ConfigDict()  # 0.14M parameters; paper: 400M
    config.inner_model.width = 64
    config.inner_model.heads = 2
    config.inner_model.mlp_width = 192
    config.inner_model.layers = 2
    config.inner_model.dtype = "float32"
    config.inner_model.rematerialise_blocks = False
    config.inner_model.save_products = (
        False  # of recomputed blocks, keep what costs most: 2 F + D numbers a token
    )
    config.inner_model.scan_blocks = False
    config.inner_model.attention = "plain"
    config.inner_model.attention_block = 256
    config.inner_model.loss_chunk = 0  # positions whose logits are held at one time; 0 for all

    config.inner_optimiser = ConfigDict()  # unstated in the paper
    config.inner_optimiser.name = "adam"  # or "adamw", "sgd"
    config.inner_optimiser.learning_rate = 3e-3
    config.inner_optimiser.b1 = 0.9
    config.inner_optimiser.b2 = 0.999
    config.inner_optimiser.eps_root = (
        1e-8  # inside the root: Adam's derivative at a zero moment stays finite
    )
    config.inner_optimiser.weight_decay = 0.1  # of "adamw"
    config.inner_optimiser.momentum = 0.9  # of "sgd"

    config.meta_optimiser = ConfigDict()
    config.meta_optimiser.learning_rate = 1e-2  # unstated in the paper
    config.meta_optimiser.warmup_steps = 10  # paper: 100
    config.meta_optimiser.clip_norm = 1.0  # of each inner model's meta-gradient; paper: 0.01
    config.meta_optimiser.weight_decay = 0.0  # decoupled; paper: 0.1
    config.meta_optimiser.b1 = 0.9
    config.meta_optimiser.b2 = 0.999
    config.meta_optimiser.epsilon = 1e-8

    config.population = ConfigDict()
    config.population.size = 4  # paper: 8
    config.population.lifetime = 40  # meta-steps; unstated in the paper
    config.population.warmup_steps = 300  # the warm-up pool is ours; 0 for none
    config.population.warmup_trajectories = 2
    config.population.warmup_entries = 4  # of each trajectory
    config.population.warmup_first_share = 0.4  # the first entry's age, as a share of warmup_steps

    config.meta_gradient = ConfigDict()
    config.meta_gradient.mode = "mixed"  # or "reverse"
    config.meta_gradient.rematerialise_updates = (
        False  # recompute each inner update in the backward pass
    )
    config.meta_gradient.save_inner_gradients = (
        False  # of recomputed updates, keep the inner gradients
    )
    config.meta_gradient.scan_updates = False  # run the updates in a loop: compiles faster
    config.meta_gradient.inner_micro_batch = (
        0  # windows of an inner batch on a device at one time; 0 for all
    )
    config.meta_gradient.outer_micro_batch = 0  # likewise of an outer batch
    config.meta_gradient.rater_micro_batch = (
        0  # likewise of the T x B windows that the rater scores
    )

    config.placement = (
        ConfigDict()
    )  # on several devices; paper: a group of devices for each inner model
    config.placement.population = (
        0  # groups of devices for inner models; 0: with data, as many devices as fit
    )
    config.placement.data = 0  # devices of a group, which share batches; 0: as many as divide them
    config.placement.shard_parameters = (
        False  # cut inner models' parameters and optimiser state over a group too
    )

    config.report_every = 10  # meta-steps between two progress lines
    config.export_every = 50  # meta-steps between two rater checkpoints
    config.checkpoint_every = (
        25  # meta-steps between two training checkpoints, from which a run resumes
    )
    config.warmup_checkpoint_every = (
        500  # the same in warm-up, in its steps; pool entries are always kept
    )
    config.keep_checkpoints = 2  # training checkpoints kept, the newest
    config.export = ConfigDict()
    config.export.reference_documents = (
        512  # documents over which scores are centred and their quantiles taken
    )
    config.export.max_windows = 256  # window cap in that, and recorded as such
    config.minimum_effective_sample_share = 0.1  # a warning below it: the weights are collapsing
    return config
