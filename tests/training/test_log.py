from atomdiffuser.training.log import TrainingLog


def test_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    log = TrainingLog(tmp_path, 0)
    for step in (20, 40, 60):
        log.write("log", step, 1.0 * step, {"loss": 1 / step})
    again = TrainingLog(tmp_path, 40)
    assert again.last("log")["step"] == 40
    again.write("log", 60, 99.0, {"loss": 0.5, "extra": 2.0})
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,elapsed_s,loss,extra"
    assert [line.split(",")[0] for line in lines[1:]] == ["20", "40", "60"]
    assert lines[-1].endswith("0.5,2")
    assert TrainingLog(tmp_path, 100).last("validation") == {}
