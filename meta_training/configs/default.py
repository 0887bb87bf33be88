r"""Every field of a training config, with its default. Other configs change what they need.

    datarater train --workdir=work \
        --config.data.inner='corpus/*.jsonl.gz' --config.data.outer='target/*.jsonl.gz'

Time: minutes on a CPU; the progress lines show how many are left. Expected result: a rater in
`work/rater`, and closing lines that report the outer loss by age of the inner models and whether
scores and weights have settled (an autocorrelation above 0.95 between exports, and a spread and an
effective sample share that moved by at most 5%).

The paper (arXiv 2505.17895) states: 2 inner updates, a population of 8, batches of 128, Adam with
decoupled weight decay 0.1, 100 steps of linear warm-up, clipping at 0.01, length 2048, and a rater
of 50M parameters over inner models of 400M. Where a default differs, its comment gives the paper's
value; the defaults are chosen so that a rater learns within minutes on a CPU.

The paper does not state the tokenizer, widths, heads and layers, learning rates, Adam's decay rates
and epsilons, or the lifetime of inner models: those are ours. Nor does it state the following,
which no field changes:
- The rater's score is the mean of the last hidden states over valid tokens, times a head without a
  bias.
- The blocks (the paper: Chinchilla's family) have RMSNorm before each part, rotary positions, a
  gated MLP and no biases.
- The inner Adam's epsilon is inside the square root (`eps_root`); outside, it is 0.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the default config."""
    config = ConfigDict()
    config.seed = 0  # Seed of all random draws.
    config.meta_steps = 200  # Updates of the rater. Paper: a checkpoint at 8,000.
    config.inner_updates = 2  # T, inner updates per meta-step, as in the paper.
    config.inner_batch = 32  # B, windows per inner update. Paper: 128.
    config.outer_batch = 16  # Windows, or questions, per outer loss of each set. Paper: 128.
    config.softmax_temperature = 1.0  # Divides scores before the softmax of a batch. Paper: 1.
    config.length = 256  # L, tokens of a window. Paper: 2048.

    config.data = ConfigDict()  # Texts, as globs joined by commas or as tfds:c4/en:train.
    config.data.inner = ""  # The pool to rate, as paths or a dataset. Required.
    config.data.outer = ""  # The target, or several: "web=FILES;books=FILES". Empty: held out.
    config.data.outer_share = 0.05  # Share of the pool held out, by a hash of each document.
    config.data.outer_weights = ""  # Such as "web=2;books=1", for several outer sets. Empty: equal.
    config.data.questions = ""  # Multiple-choice questions as one more outer set, in JSONL files.
    config.data.validation = ""  # Texts to validate raters on. Empty: see the next field.
    config.data.validation_share = 0.0  # Share of the target held out for validation; 0 for none.
    config.data.test = ""  # Texts that no part of training looks at. Empty: see the next field.
    config.data.test_share = 0.0  # Share of the target held out for testing; 0 for none.
    config.data.exclude_near_duplicates = True  # Keep near-duplicates of held-out texts out.
    config.data.prepared = ""  # Folder of `datarater prepare`. Empty: the workdir's own.
    config.data.text_field = "text"  # Field with a record's text.
    config.data.source_field = "source"  # Field with the name of a record's source.
    config.data.within_source_share = 0.0  # Share of inner batches from a single source. Ours.
    config.data.windows = "packed"  # "packed" (paper), or "document": padded, of one document each.
    config.data.tfds_data_dir = ""  # Folder of TensorFlow datasets. Empty: TFDS's own default.
    config.data.reader_processes = 0  # Processes that read batches of each set; 0: a thread.
    config.data.minimum_length = 32  # Minimum tokens of a last window with "document".

    config.tokenizer = ConfigDict()  # Turns texts into token ids. Unstated in the paper.
    config.tokenizer.kind = "byte"  # "byte", "bpe" of the pool, or "file": that of `start`.
    config.tokenizer.vocabulary_size = 8192  # Number of ids of the BPE.
    config.tokenizer.training_documents = 20_000  # Maximum number of documents to train the BPE on.

    config.rater = ConfigDict()  # 0.6M parameters, 0.5M of them in n-gram tables. Paper: 50M.
    config.rater.width = 64  # Numbers per token in the hidden states.
    config.rater.heads = 2  # Attention heads.
    config.rater.mlp_width = 128  # Hidden width of the MLP.
    config.rater.layers = 1  # Transformer blocks.
    config.rater.ngram_orders = (2,)  # Orders of the n-grams with embeddings; () for none. Ours.
    config.rater.ngram_rows = 8192  # Rows of each order's table of hashed n-grams.
    config.rater.pooling = "mean"  # "mean", or "attention": learned weights of the tokens. Ours.
    config.rater.dtype = "float32"  # Computation in "float32" or "bfloat16"; parameters in float32.
    config.rater.rematerialise_blocks = False  # Recompute each block in the backward pass.
    config.rater.scan_blocks = False  # Loop over the blocks: compiles faster, recomputes in order.
    config.rater.attention = "plain"  # Or "blocks": without L x L scores; "fused": cuDNN's kernel.
    config.rater.attention_block = 256  # Keys per block of "blocks".

    config.rater.head_width = 0  # Width of a head; 0 for width / heads.
    config.rater.key_value_heads = 0  # Heads with keys and values of their own; 0 for all.
    config.rater.rotary_base = 10_000.0  # Base of the angles of rotary positions.
    config.rater.rotary_scaling = ()  # The four numbers of Llama 3; () for none.
    config.rater.norm_epsilon = 1e-6  # Epsilon under the root of RMSNorm.

    config.start = ConfigDict()  # The rater before the first meta-step. Paper: untrained.
    config.start.rater = ""  # A rater, or an encoder of Hugging Face. Empty: untrained.
    config.start.inner_model = ""  # A LlamaForCausalLM, local or hf://ORG/NAME. Empty: untrained.
    config.start.scores = ""  # Filters to imitate first, such as "classifier", or files of scores.
    config.start.documents = 20_000  # Maximum number of documents whose scores are imitated.
    config.start.scale = 1.0  # Standard deviation of the windows' scores after imitation.
    config.start.steps = 500  # Updates that imitate the scores.
    config.start.batch = 64  # Windows of such an update.
    config.start.learning_rate = 3e-3  # Peak learning rate of their Adam.

    config.inner_model = ConfigDict()  # 0.14M parameters. Paper: 400M.
    config.inner_model.width = 64  # Numbers per token in the hidden states.
    config.inner_model.heads = 2  # Attention heads.
    config.inner_model.mlp_width = 192  # F, hidden width of the MLP.
    config.inner_model.layers = 2  # Transformer blocks.
    config.inner_model.dtype = "float32"  # Computation in "float32" or "bfloat16".
    config.inner_model.rematerialise_blocks = False  # Recompute each block in the backward pass.
    config.inner_model.save_products = False  # Keep 2 F + D numbers per token of recomputed blocks.
    config.inner_model.scan_blocks = False  # Loop over the blocks, which compiles faster.
    config.inner_model.attention = "plain"  # "plain", or "blocks": exact too, without L x L scores.
    config.inner_model.attention_block = 256  # Keys per block of "blocks".
    config.inner_model.head_width = 0  # Width of a head; 0 for width / heads.
    config.inner_model.key_value_heads = 0  # Heads with keys and values of their own; 0 for all.
    config.inner_model.rotary_base = 10_000.0  # Base of the angles of rotary positions.
    config.inner_model.rotary_scaling = ()  # The four numbers of Llama 3; () for none.
    config.inner_model.norm_epsilon = 1e-6  # Epsilon under the root of RMSNorm.
    config.inner_model.tied_embeddings = False  # Read logits out with the token embeddings.
    config.inner_model.loss_chunk = 0  # Positions whose logits exist at a time; 0 for all.

    config.inner_optimiser = ConfigDict()  # The paper states Adam but none of its values.
    config.inner_optimiser.name = "adam"  # "adam", "adamw" or "sgd".
    config.inner_optimiser.learning_rate = 3e-3  # Constant learning rate.
    config.inner_optimiser.b1 = 0.9  # Adam's decay rate for the mean of gradients.
    config.inner_optimiser.b2 = 0.999  # Adam's decay rate for the mean of squared gradients.
    # Small against v, so that Adam is Adam: sqrt(1e-12) = 1e-6, where the median of sqrt(v) is 7e-4
    # at 0.14M parameters, 3e-4 at 1.2M and, by 1 / sqrt(parameters), 1.6e-5 at 400M. From an age of
    # 1 update on, the meta-gradient is the same down to 1e-20. At age 0, where v is 0 and the first
    # update is nearly sign(gradient), float32 has a relative error of 1e-3 at 1e-12, 5e-2 at 1e-14
    # and 7 at 1e-20. Measured by tests/benchmarks/adam_epsilon.py.
    config.inner_optimiser.eps_root = 1e-12  # Epsilon in Adam's root; derivatives at 0 are finite.
    config.inner_optimiser.weight_decay = 0.1  # Decoupled weight decay of "adamw".
    config.inner_optimiser.momentum = 0.9  # Momentum of "sgd".

    config.meta_optimiser = ConfigDict()  # Adam, with one state per inner model.
    config.meta_optimiser.learning_rate = 1e-2  # Learning rate after warm-up. Paper: unstated.
    config.meta_optimiser.warmup_steps = 10  # Meta-steps of linear warm-up. Paper: 100.
    config.meta_optimiser.schedule = "constant"  # "constant", "linear" or "cosine" after warm-up.
    config.meta_optimiser.final_share = 0.0  # Share of the learning rate that a decay ends at.
    config.meta_optimiser.clip_norm = 1.0  # Norm to clip each meta-gradient at. Paper: 0.01.
    config.meta_optimiser.weight_decay = 0.0  # Decoupled weight decay. Paper: 0.1.
    config.meta_optimiser.b1 = 0.9  # Adam's decay rate for the mean of gradients.
    config.meta_optimiser.b2 = 0.999  # Adam's decay rate for the mean of squared gradients.
    config.meta_optimiser.epsilon = 1e-8  # Adam's epsilon, outside the root.

    config.rater_average = ConfigDict()  # Average of the rater over meta-steps. Ours.
    config.rater_average.decay = 0.0  # Share of the average kept per step; 0 exports the last step.

    config.population = ConfigDict()  # The inner models. Starting them from a pool is ours.
    config.population.size = 4  # Number of inner models. Paper: 8.
    config.population.lifetime = 40  # Meta-steps between resets; 0 for none. Paper: unstated.
    config.population.warmup_steps = 300  # Updates of each trajectory of the pool; 0 for no pool.
    config.population.warmup_batch = 0  # Windows per warm-up update; 0 for inner_batch.
    config.population.warmup_trajectories = 2  # Number of models trained for the pool.
    config.population.warmup_entries = 4  # Number of checkpoints of each trajectory in the pool.
    config.population.warmup_first_share = 0.4  # Age of the first entry as a share of warmup_steps.

    config.meta_gradient = ConfigDict()  # Trades time for memory; changes values by rounding only.
    config.meta_gradient.mode = "mixed"  # "mixed" or "reverse" differentiation.
    config.meta_gradient.rematerialise_updates = False  # Recompute updates in the backward pass.
    config.meta_gradient.save_inner_gradients = False  # Keep gradients of recomputed updates.
    config.meta_gradient.scan_updates = False  # Loop over the updates, which compiles faster.
    config.meta_gradient.inner_micro_batch = 0  # Inner windows per device at a time; 0 for all.
    config.meta_gradient.outer_micro_batch = 0  # Outer windows per device at a time; 0 for all.
    config.meta_gradient.rater_micro_batch = 0  # Windows the rater scores at a time; 0 for all.

    config.placement = ConfigDict()  # Use of several devices. Paper: a group per inner model.
    config.placement.population = 0  # Groups of devices; 0: as many as fit together with data.
    config.placement.data = 0  # Devices per group, which share batches; 0: all that divide them.
    config.placement.shard_parameters = False  # Shard parameters and moments over a group as well.

    config.report_every = 10  # Meta-steps between progress lines.
    config.peak_flops = 0.0  # FLOPs per second of a device, for the MFU; 0: known for some.
    config.compilation_cache = ""  # Folder of compiled programs. Empty: the user's; "off": none.
    config.profile = ConfigDict()  # Meta-steps to trace into WORKDIR/profile; 0 for none.
    config.profile.first_step = 0  # First meta-step of the trace, counted from 1.
    config.profile.last_step = 0  # Last meta-step of the trace.
    config.wandb = ConfigDict()  # Weights & Biases beside metrics.csv and TensorBoard.
    config.wandb.project = ""  # Project to write metrics to; empty for none. Extra: [wandb].
    config.wandb.entity = ""  # User or team of the project. Empty: the account's default.
    config.wandb.name = ""  # Name to show for the run. Empty: that of the workdir's folder.
    config.wandb.mode = ""  # "online" or "offline". Empty: as WANDB_MODE says, else online.
    config.validate_every = 0  # Meta-steps between validations of the rater; 0 for none. Ours.
    config.validation = ConfigDict()  # Trains models on rated batches, and on uniform weights.
    config.validation.models = 4  # Number of models; the gain's standard error is over them.
    config.validation.updates = 16  # Updates of each model, on rated and on uniform batches.
    config.validation.windows = 256  # Validation windows that measure the models' losses.
    config.early_stopping = ConfigDict()  # Ends a run whose raters no longer improve.
    config.early_stopping.patience = 0  # Validations without improvement that end it; 0 for never.
    config.choose_checkpoint = "last"  # Which rater is exported: "last", or best by "validation".
    config.export_every = 50  # Meta-steps between rater checkpoints.
    config.checkpoint_every = 25  # Meta-steps between training checkpoints, from which runs resume.
    config.warmup_checkpoint_every = 500  # Warm-up steps between checkpoints; entries are kept.
    config.keep_checkpoints = 2  # Number of newest training checkpoints to keep.
    config.export = ConfigDict()  # What an exported rater records of its scores.
    config.export.reference_documents = 512  # Documents that center the scores and give quantiles.
    config.export.max_windows = 256  # Maximum number of windows scored per document; recorded.
    config.minimum_effective_sample_share = 0.1  # Share below which a collapse is reported.
    return config
