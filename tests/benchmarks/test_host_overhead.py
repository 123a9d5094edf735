import torch

from benchmarks.engine import host_overhead
from stepcache.bench.rows import read


def test_a_small_run(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    host_overhead.main(["--steps", "4", "--repeats", "2", "--out", str(path)])
    rows = read(path, host_overhead.Row)
    assert {(row.method, row.variant) for row in rows} == {
        ("no-op layers", "original"),
        ("no-op layers", "stepcache"),
        ("no-op layers", "deepcache"),
        ("no U-Net", "original"),
        ("no U-Net", "stepcache"),
        ("no U-Net", "stepcache, captured"),
    }
    assert {(row.interval, row.full_steps) for row in rows if row.variant == "stepcache"} == {(1, 4), (3, 2), (4, 1)}
    assert all(row.call > 0 for row in rows)
    assert all(row.added == 0 for row in rows if row.variant == "original")
    assert "per U-Net call" in capsys.readouterr().out


def test_layers_of_the_no_op_unet_do_nothing_but_its_blocks_run():
    unet = host_overhead.no_op_unet()
    assert not list(unet.parameters())
    calls = []
    for name, module in unet.named_modules():
        if isinstance(module, host_overhead.NoOp):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        output = unet(torch.zeros(2, 4, 8, 8), torch.tensor(1), encoder_hidden_states=torch.zeros(2, 1, 4)).sample
    assert output.shape == (2, 4, 8, 8)
    # SD 1.5: 22 ResNets, 16 attentions, 3 + 3 samplers; two time embeddings, conv_in and the three of the output.
    assert len(calls) == 22 + 16 + 6 + 2 + 4
