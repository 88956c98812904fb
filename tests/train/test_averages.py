"""Means of weights: over a run, and of its end with its start."""

import pytest
import torch

from glip.train.averages import RunningMean, wise_ft


def model(value: float) -> torch.nn.Module:
    made = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def test_running_mean_warms_up_and_then_keeps_its_decay():
    mean = RunningMean(model(0.0), 0.8)
    expected = 0.0
    for number in range(60):
        decay = min(0.8, (1 + number) / (10 + number))
        value = float(number % 7)
        expected = decay * expected + (1 - decay) * value
        mean.update(model(value))
    assert mean.updates == 60 and mean.means["0.weight"][0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert set(mean.means) == {"0.weight", "0.bias", "1.weight", "1.bias"}, "statistics are the model's own"


def test_what_does_not_move_stays_to_the_last_bit():
    still = torch.nn.Linear(50, 50)
    mean = RunningMean(still, 0.9998)
    for _ in range(20):
        mean.update(still)
    assert torch.equal(mean.means["weight"], still.weight)
    both = dict(still.state_dict())
    assert all(torch.equal(value, both[key]) for key, value in wise_ft(both, both, 0.3).items())


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_start_is_kept_at_its_share(share):
    start, trained = model(4.0).state_dict(), model(8.0).state_dict()
    trained["1.num_batches_tracked"] += 5
    trained["1.running_mean"] += 1.0
    kept = wise_ft(start, trained, share)
    assert torch.allclose(kept["0.weight"], torch.full((2, 2), 8.0 - 4.0 * share))
    assert torch.allclose(kept["1.running_mean"], torch.full((2,), 1.0 - share))
    assert kept["1.num_batches_tracked"] == 5
    assert trained["0.weight"][0, 0] == 8.0, "neither is changed"


def test_wrong_shares_and_other_models_are_told():
    weights = model(1.0).state_dict()
    with pytest.raises(ValueError, match=r"wise_ft: got 1\.5: give a share"):
        wise_ft(weights, weights, 1.5)
    with pytest.raises(ValueError, match="only one has '0.bias'"):
        wise_ft({k: v for k, v in weights.items() if k != "0.bias"}, weights, 0.5)
