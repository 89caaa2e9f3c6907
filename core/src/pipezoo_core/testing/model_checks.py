"""Is it the model that it says it is: config, weights, and what comes out of them?"""

from __future__ import annotations

from collections.abc import Sequence

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.errors import CheckpointMismatchError, PipezooError
from pipezoo_core.testing.agreement import check_same_logits, difference, tolerance
from pipezoo_core.testing.diagnosis import diagnose
from pipezoo_core.testing.failures import ConformanceError, NotCheckedError
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.reference import save_reference
from pipezoo_core.testing.steps import logits_of
from pipezoo_core.testing.subject import Subject
from pipezoo_core.testing.weight_map import unread_tensors, weight_map

__all__ = ["check_log_probabilities", "check_saved_in_shards", "check_spec", "check_weights"]

_MOST_IN_A_SHARD = "40KB"


def check_spec(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """The plugin reads each config, as often as one likes, and describes as many layers as there are."""
    del plugin
    for subject in subjects:
        model = subject.architecture.pipeline_model
        if not issubclass(model, DecoderPipelineModel):
            continue
        try:
            config, again = (model.config_class.from_huggingface(subject.huggingface_config) for _ in range(2))
        except PipezooError as error:
            raise ConformanceError(
                f"the plugin refuses config {subject.name!r}",
                found=error,
                cure="Take it out of the configs where that is right; else mend from_huggingface.",
            ) from error
        if config != again:
            raise ConformanceError(
                f"config {subject.name!r}: from_huggingface gives something else the second time",
                cure="It is called often: it reads the config and changes nothing in it.",
            )
        if len(config.layers) != config.num_layers:
            raise ConformanceError(
                f"config {subject.name!r}: `layers` does not describe every layer",
                found=f"{len(config.layers)} of {config.num_layers}",
                cure="Return an AttentionSpec for each layer, a StateSpec where it keeps a state, None for neither.",
            )
        attentions = ((number, spec) for number, spec in enumerate(config.layers) if isinstance(spec, AttentionSpec))
        odd = [number for number, spec in attentions if (spec.sliding_window or 1) < 1]
        if odd:
            raise ConformanceError(
                f"config {subject.name!r}: layers have a window that shows nothing",
                found=odd,
                allowed="a sliding_window of at least 1, a query's own token, or None",
            )


def check_weights(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """Every tensor of a checkpoint has a place in the module, and every parameter of the module its tensor."""
    del plugin
    for subject in subjects:
        left_out = unread_tensors(subject, weight_map(subject))
        if left_out:
            raise ConformanceError(
                f"config {subject.name!r}: the weight adapter drops weights",
                found=left_out,
                cure="Most likely it skips these names, or the module has no such parameter, a bias or a norm: give it "
                "one, where the config asks for it.",
            )
        try:
            subject.load()
        except CheckpointMismatchError as error:
            raise ConformanceError(
                f"config {subject.name!r}: the module does not take the checkpoint's weights",
                found=error,
                cure=_why_not_taken(error, subject),
            ) from error


def check_saved_in_shards(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """A checkpoint in several files is the same model as one in one file."""
    del plugin
    for subject in subjects[:1]:
        folder = subject.folder / "shards"
        folder.mkdir(exist_ok=True)
        save_reference(subject.reference, subject.config, folder, max_shard_size=_MOST_IN_A_SHARD)
        if not (folder / "model.safetensors.index.json").is_file():
            raise NotCheckedError("the reference is saved in one file: it is too small, or none of transformers'")
        check_same_logits(
            logits_of(subject.load(checkpoint=folder), subject.prompts),
            logits_of(subject.load(), subject.prompts),
            f"config {subject.name!r}: saved in several files it is another model, first at {{}}",
            "Most likely the weight adapter goes by the order of the tensors.",
        )


def check_log_probabilities(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """The log probabilities of all tokens are the reference implementation's, in float32."""
    del plugin
    for subject in subjects:
        expected = [subject.expected(prompt).log_softmax(-1) for prompt in subject.prompts]
        found = [logits.log_softmax(-1) for logits in logits_of(subject.load(), subject.prompts)]
        for ours, theirs in zip(found, expected, strict=True):
            if difference(ours, theirs) > tolerance(theirs):
                raise diagnose(subject, difference(ours, theirs))


def _why_not_taken(error: CheckpointMismatchError, subject: Subject) -> str:
    missing, unexpected = error.missing, error.unexpected
    if any("head" in name or "embed_out" in name for name in [*missing, *unexpected]):
        tied = subject.huggingface_config.get_text_config().tie_word_embeddings
        return (
            f"The config says tie_word_embeddings={tied}: most likely the module does not go by it. Make the head "
            "LMHead.sharing(embedding) where it is set, and an LMHead of its own where it is not."
        )
    if unexpected and not missing and all(name.endswith(".bias") for name in unexpected):
        return "The checkpoint has biases, and the module's layers have none: most likely bias=… is missing."
    if missing and not unexpected and all(name.endswith(".bias") for name in missing):
        return (
            "The module's layers have biases that the checkpoint has not, or the weight adapter drops: bias=… is what "
            "the config says."
        )
    if error.wrong_shape and not missing and not unexpected:
        return (
            "Most likely a size is read from another entry of the config, or a matrix is stored the other way round "
            "(LazyTensor.transposed)."
        )
    return "Compare the names: a parameter is called as the tensor that belongs in it, after the weight adapter."
