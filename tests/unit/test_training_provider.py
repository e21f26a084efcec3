"""The parts of a job that are passed to Ray."""

from onbrand.config import Limits, Settings
from onbrand.training.dispatch.providers.ray import job_environment, submission_id
from onbrand.training.ray.driver import reason, root_of

JOB = "0b8a4c1e-1111-4222-8333-444455556666"


def test_an_attempt_always_has_the_same_submission_and_another_attempt_another():
    assert submission_id(JOB, 1) == submission_id(JOB, 1) != submission_id(JOB, 2)


def test_a_jobs_environment_holds_no_secret(tmp_path):
    settings = Settings(
        data_dir=tmp_path,
        s3_access_key="the-access-key",
        s3_secret_key="the-secret-key",
        database_url="postgresql://owner:password@host/db",
        system_database_url="postgresql://system:password@host/db",
    )
    told = " ".join(f"{name}={value}" for name, value in job_environment(settings).items())
    assert not any(secret in told for secret in ("access-key", "secret-key", "password", "postgresql"))


def test_a_job_is_stopped_by_a_signal_that_ray_train_understands(tmp_path):
    told = job_environment(Settings(data_dir=tmp_path))
    assert (told["RAY_JOB_STOP_SIGNAL"], told["RAY_JOB_STOP_WAIT_TIME_S"]) == ("SIGINT", "30")


def test_a_job_gets_the_settings_of_its_platform(tmp_path):
    limits = Limits(image_pixels=50_000_000)
    told = job_environment(
        Settings(data_dir=tmp_path, port=8123, internal_port=8124, bases={"sd15": "/bases/sd15"}, limits=limits)
    )
    assert told["ONBRAND_INTERNAL_URL"] == "http://127.0.0.1:8124/internal"
    assert told["ONBRAND_BASES__sd15"] == "/bases/sd15"
    assert {name: value for name, value in told.items() if "LIMITS" in name} == {
        "ONBRAND_LIMITS__IMAGE_PIXELS": "50000000"
    }


def test_a_reason_names_the_kind_of_error_and_never_its_text():
    problem = RuntimeError("/srv/secret/path: photo of acme logo")
    assert "RuntimeError" in reason(problem)
    assert "acme" not in reason(problem)
    assert "/srv" not in reason(problem)


def test_memory_that_is_not_enough_comes_with_the_remedy():
    assert "batch_size" in reason(MemoryError())


def test_the_error_that_began_it_is_found_below_ray_trains_wrappers():
    import ray.train

    problem = ray.train.WorkerGroupError("two workers", {0: ValueError("inner")})
    assert isinstance(root_of(problem), ValueError)
