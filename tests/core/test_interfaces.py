"""The interfaces as a plugin author or a caller meets them."""

import asyncio
from types import SimpleNamespace

import pytest
import torch

from pipezoo_core.config import KVCacheConfig, PipelineConfig, ReturnLogits, SupportedEncoding
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.interfaces import (
    AlwaysSignalBuffersMixin,
    GenerateMixin,
    KVCacheMixin,
    ModelInputs,
    ModelOutputs,
    PipelineModel,
    get_paged_manager,
    upper_bounded_default,
)
from pipezoo_core.request import TextGenerationOutput, TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.session import InferenceSession


class ReplitInputs(ModelInputs):
    """The example of the interface's documentation."""

    tokens: torch.Tensor
    input_row_offsets: torch.Tensor

    def __init__(self, tokens, input_row_offsets):
        self.tokens = tokens
        self.input_row_offsets = input_row_offsets


def test_model_inputs_example_holds():
    tokens, offsets = torch.zeros((1, 2, 3), dtype=torch.int64), torch.zeros((1, 1, 1), dtype=torch.int64)
    inputs = ReplitInputs(tokens=tokens, input_row_offsets=offsets)
    assert list(inputs) == [tokens, offsets]
    assert inputs.kv_cache_inputs is None
    assert inputs.lora_ids is None
    assert inputs.lora_ranks is None


def test_model_inputs_update_sets_existing_names_and_values_only():
    inputs = ReplitInputs(torch.zeros(1), torch.zeros(2))
    new, old = torch.ones(1), inputs.input_row_offsets
    inputs.update(tokens=new, input_row_offsets=None, stranger=torch.ones(3), lora_ids=torch.ones(4))
    assert inputs.tokens is new
    assert inputs.input_row_offsets is old
    assert not hasattr(inputs, "stranger")
    assert len(list(inputs)) == 2
    assert inputs.lora_ids.shape == (4,)


def test_model_outputs_are_frozen():
    outputs = ModelOutputs(logits=torch.zeros(2, 3))
    assert outputs.next_token_logits is None
    assert outputs.logit_offsets is None
    with pytest.raises(AttributeError):
        outputs.logits = torch.zeros(1)


def test_upper_bounded_default():
    assert upper_bounded_default(upper_bound=8, default=None) == 8
    assert upper_bounded_default(upper_bound=8, default=8) == 8
    with pytest.raises(ValueError, match="9 is above the upper bound of 8"):
        upper_bounded_default(upper_bound=8, default=9)


class CountingModel(PipelineModel):
    """The least a model can be: the token after t is t + 1."""

    @classmethod
    def calculate_max_seq_len(cls, pipeline_config, huggingface_config):
        return upper_bounded_default(upper_bound=huggingface_config.max_seq_len, default=pipeline_config.max_length)

    def prepare_initial_token_inputs(self, context_batch, kv_cache_inputs=None, return_n_logits=1):
        chunks = [context.chunk for context in context_batch]
        offsets = torch.tensor([0, *(len(chunk) for chunk in chunks)]).cumsum(0)
        return ReplitInputs(torch.tensor([token for chunk in chunks for token in chunk]), offsets)

    def prepare_next_token_inputs(self, next_tokens, prev_model_inputs):
        return ReplitInputs(next_tokens, torch.arange(len(next_tokens) + 1))

    def execute(self, model_inputs):
        last = model_inputs.tokens[model_inputs.input_row_offsets[1:] - 1]
        logits = torch.nn.functional.one_hot((last + 1) % 10, 10).float()
        return ModelOutputs(logits=logits, next_token_logits=logits, logit_offsets=torch.arange(len(last) + 1))


def test_a_model_that_verifies_no_drafts_is_loaded_without():
    with pytest.raises(InvalidSettingError, match="CountingModel does not return the logits that verify drafts"):
        make_model(speculative="lookup")


class SignalCountingModel(AlwaysSignalBuffersMixin, CountingModel):
    pass


def make_model(model_class=CountingModel, devices=("cpu",), **settings):
    config = PipelineConfig(model_path="counting", **settings)
    session = InferenceSession([torch.device(device) for device in devices])
    return model_class(
        pipeline_config=config,
        session=session,
        huggingface_config=SimpleNamespace(max_seq_len=50),
        encoding=SupportedEncoding.bfloat16,
        devices=session.devices,
        kv_cache_config=KVCacheConfig(),
        weights={},
        adapter=None,
        return_logits=ReturnLogits.LAST_TOKEN,
    )


def test_pipeline_model_without_a_cache():
    model = make_model()
    assert model.max_seq_len == 50
    assert make_model(max_length=7).max_seq_len == 7
    assert model.dtype is torch.bfloat16
    assert model.lora_manager is None
    assert not isinstance(model, KVCacheMixin)
    assert not hasattr(model, "kv_manager")
    assert CountingModel.estimate_activation_memory(model.pipeline_config, None) == 0
    with pytest.raises(ValueError, match="60"):
        make_model(max_length=60)
    with pytest.raises(TypeError, match="abstract"):
        PipelineModel(None, None, None, None, None, None, None, None, None)


def test_signal_buffers():
    assert make_model().signal_buffers == []
    two = make_model(devices=("cpu", "cpu"))
    assert [buffer.dtype for buffer in two.signal_buffers] == [torch.uint8, torch.uint8]
    assert two.signal_buffers[0] is two.signal_buffers[0]
    (buffer,) = make_model(SignalCountingModel).signal_buffers
    assert (buffer.dtype, buffer.device.type) == (torch.uint8, "cpu")


def test_signal_buffers_are_made_when_first_asked_for():
    """A device that is not there is noticed then, and not before."""
    model = make_model(devices=("cpu", "cuda:99"))
    with pytest.raises((RuntimeError, AssertionError)):
        _ = model.signal_buffers


def test_signal_buffers_of_a_class_that_only_has_devices():
    class Embedding(AlwaysSignalBuffersMixin):
        devices = (torch.device("cpu"),)

    embedding = Embedding()
    assert [buffer.dtype for buffer in embedding.signal_buffers] == [torch.uint8]
    assert embedding.signal_buffers[0] is embedding.signal_buffers[0]
    assert Embedding().signal_buffers[0] is not embedding.signal_buffers[0]


def test_log_probabilities_by_the_default():
    model = make_model()
    inputs = ReplitInputs(torch.tensor([3, 4]), torch.tensor([0, 1, 2]))
    found = model.compute_log_probabilities(
        model.session, inputs, model.execute(inputs), torch.tensor([4, 9]), [2, 0], [False, False]
    )
    expected = torch.nn.functional.one_hot(torch.tensor(4), 10).float().log_softmax(-1)
    assert found[1] is None
    assert found[0].token_log_probabilities == pytest.approx([expected[4].item()])
    assert len(found[0].top_log_probabilities[0]) == 2


class CountingPipeline(GenerateMixin):
    """A pipeline that brings `execute` and `release` only; the mixin does the rest."""

    kv_managers = ()
    pipeline_config = None
    tokenizer = None

    def __init__(self, fail_at=None):
        from pipezoo_core.context import TextContext

        self.model, self.released, self.fail_at, self.calls = make_model(), [], fail_at, 0
        self.tokenizer = SimpleNamespace(
            new_context=lambda request: TextContext(
                request_id=request.request_id,
                prompt_tokens=[int(digit) for digit in request.prompt],
                max_length=50,
                sampling_params=request.sampling_params or SamplingParams(max_new_tokens=len(request.prompt) + 1),
            )
        )

    def execute(self, inputs):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("out of luck")
        outputs = self.model.execute(self.model.prepare_initial_token_inputs(inputs.batch))
        result = {}
        for context, token in zip(inputs.batch, outputs.next_token_logits.argmax(-1).tolist(), strict=True):
            context.advance(token)
            result[context.request_id] = TextGenerationOutput(
                request_id=context.request_id, text=str(token), tokens=[token], final_status=context.status
            )
        return result

    def release(self, request_id):
        self.released.append(request_id)


def test_generate_mixin_works_over_execute():
    pipeline = CountingPipeline()
    assert isinstance(pipeline, GenerateMixin)
    assert [output.text for output in pipeline.generate(["12", "7", "888"])] == ["345", "89", "9012"]
    assert len(pipeline.released) == 3
    assert pipeline.generate("4")[0].tokens == [5, 6]
    assert get_paged_manager(pipeline) is None


def test_generate_async_of_the_mixin_streams_and_releases():
    pipeline = CountingPipeline()

    async def collect(limit):
        found = []
        stream = pipeline.generate_async(["12", "7"])
        async for outputs in stream:
            found.append([output.text for output in outputs])
            if len(found) == limit:
                break
        await stream.aclose()
        return found

    assert asyncio.run(collect(9)) == [["3", "8"], ["4", "9"], ["5"]]
    assert asyncio.run(collect(1)) == [["3", "8"]]
    assert len(pipeline.released) == 4


def test_generate_of_the_mixin_releases_after_an_error():
    pipeline = CountingPipeline(fail_at=2)
    requests = [TextGenerationRequest(prompt="123"), TextGenerationRequest(prompt="4")]
    with pytest.raises(RuntimeError, match="out of luck"):
        pipeline.generate(requests)
    assert sorted(pipeline.released) == sorted(request.request_id for request in requests)
    assert pipeline.generate("4")[0].text == "56"


def test_get_paged_manager_takes_a_duck():
    names = ("external_claim", "contains", "maybe_reserve", "fetch", "step", "release")
    duck = SimpleNamespace(**{name: lambda *_: None for name in names})
    assert get_paged_manager(SimpleNamespace(kv_managers=[duck])) is duck
    assert get_paged_manager(SimpleNamespace(kv_managers=[SimpleNamespace()])) is None
    assert get_paged_manager(SimpleNamespace()) is None
