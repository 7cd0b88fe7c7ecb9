"""What transformers reads of a compiled model besides its loss: hidden states, attentions, its configuration."""

import copy
import json
import warnings

import pytest
import torch
from transformers import LlamaForCausalLM

import anew
from anew.frontend.recorded import RecordingWarning
from tests.emulator.training import TOKENS, compiled, gradients, reference, worst_error


@pytest.mark.usefixtures("fresh")
def test_hidden_states_come_from_the_engine(llama):
    net = llama()
    wanted = copy.deepcopy(net)(input_ids=TOKENS, output_hidden_states=True).hidden_states
    compiled(net)(input_ids=TOKENS)  # captured before transformers puts its hooks on
    dispatches = anew.statistics(net).dispatches
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecordingWarning)
        found = net(input_ids=TOKENS, output_hidden_states=True).hidden_states
    assert anew.statistics(net).dispatches == dispatches + 2
    assert len(found) == len(wanted) == 3
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)


@pytest.mark.usefixtures("fresh")
def test_training_goes_on_after_recording(llama):
    net = llama()
    wanted = reference(net)
    compiled(net)(input_ids=TOKENS, output_hidden_states=True)
    assert worst_error(gradients(net), wanted) < 0.02
    loss = net(input_ids=TOKENS, output_hidden_states=True).hidden_states[1].square().sum()
    loss.backward()
    assert net.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0


@pytest.mark.usefixtures("fresh")
def test_hidden_states_of_generated_tokens_have_their_true_sizes(llama):
    net = llama().eval()
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    settings |= {"output_hidden_states": True, "return_dict_in_generate": True}
    wanted = copy.deepcopy(net).generate(TOKENS, **settings)
    found = compiled(net).generate(TOKENS, **settings)
    assert found.sequences.tolist() == wanted.sequences.tolist()
    assert [h.shape for step in found.hidden_states for h in step] == [
        h.shape for step in wanted.hidden_states for h in step
    ]


@pytest.mark.usefixtures("fresh")
def test_attentions_are_recorded_in_plain_pytorch_and_it_says_so(llama):
    net = llama(attn_implementation="eager")
    wanted = copy.deepcopy(net)(input_ids=TOKENS, output_attentions=True).attentions
    compiled(net)
    with pytest.warns(RecordingWarning, match=r"LlamaDecoderLayer runs in plain PyTorch.* record attentions"):
        found = net(input_ids=TOKENS, output_attentions=True).attentions
    assert len(found) == 2
    torch.testing.assert_close(found, wanted)
    assert anew.statistics(net).dispatches == 0
    net(input_ids=TOKENS)
    assert anew.statistics(net).dispatches > 0


@pytest.mark.usefixtures("fresh")
def test_the_saved_configuration_is_that_of_the_model(llama, tmp_path):
    net = llama(use_cache=True)
    compiled(net)
    assert net(input_ids=TOKENS).past_key_values is None
    assert net(input_ids=TOKENS, use_cache=True).past_key_values.get_seq_length() == TOKENS.shape[1]
    net.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"]
    plain = LlamaForCausalLM.from_pretrained(tmp_path)
    assert plain(input_ids=TOKENS).past_key_values is not None
    assert copy.deepcopy(net)(input_ids=TOKENS).past_key_values is not None
