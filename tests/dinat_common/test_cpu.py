"""What a CPU gets in parts or without a copy."""

import pytest
import torch

from dinat_common.cpu import channels_first, map_tokens


@pytest.mark.parametrize("count", [1, 4096, 4097, 9999])
@pytest.mark.parametrize("gradients", [False, True])
def test_many_tokens_are_mapped_in_parts_without_gradients(count, gradients, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parts = []

    def double(tokens):
        parts.append(tokens.shape)
        return 2 * tokens

    x = torch.randn(3, 1, count).transpose(0, 2)  # tokens that are not contiguous
    with torch.set_grad_enabled(gradients):
        assert torch.equal(map_tokens(double, x), 2 * x)
    assert parts == ([x.shape] if gradients or count <= 4096 else [(1024, 3)] * (count // 1024) + [(count % 1024, 3)])


def test_a_compiler_gets_the_function_as_a_whole():
    class Double(torch.nn.Module):
        def forward(self, x):
            return map_tokens(lambda tokens: 2 * tokens, x)

    x = torch.randn(1, 3, 2)
    with torch.no_grad():
        program = torch.export.export(Double(), (x,), dynamic_shapes=({1: torch.export.Dim.AUTO},))
        compiled = torch.compile(Double(), backend="eager", fullgraph=True)
        for count in (3, 9000):
            x = torch.randn(1, count, 2)
            assert torch.equal(compiled(x), 2 * x) and torch.equal(program.module()(x), 2 * x)


def test_a_map_is_turned_without_a_copy():
    x = torch.randn(2, 3, 4, 5)
    assert channels_first(x).data_ptr() == x.data_ptr() and torch.equal(channels_first(x), x.permute(0, 3, 1, 2))
