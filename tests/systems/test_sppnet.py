"""SPP-net's constants against the sheet, sections 2, 4, 6 and 7: the paper's column."""

from dataclasses import asdict

from rcnnpipe.models.map_view import MapView, usual_view
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.systems import rcnn, sppnet


def test_batches_are_a_quarter_objects_and_background_begins_at_a_tenth() -> None:
    changed = {"background_from": 0.1, "mirror": False}
    assert asdict(sppnet.SAMPLING) == asdict(rcnn.SAMPLING) | changed


def test_the_schedule_is_the_papers() -> None:
    solver = sppnet.SOLVER
    assert (solver.learning_rate, solver.step, solver.iterations) == (1e-4, 250_000, 300_000)
    assert (solver.bias_multiplier, solver.classifier_multiplier) == (1.0, 1.0)


def test_pyramid_and_scales_are_the_papers() -> None:
    assert Pyramid().bins == 50
    assert MapView() == usual_view(224)
    assert MapView().scales == (480, 576, 688, 864, 1200)
