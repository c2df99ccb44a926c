"""Sounds as data sets: files, classes and splits by fields, and the log-mel spectrogram."""

from __future__ import annotations

import pickle
import wave

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import logmel, sound, sound_files, sound_sets, sources

RATE = 8000


def tone(frequency: float, length: int = 512, rate: int = RATE, amplitude: float = 0.5):
    """A sine wave (length,)."""
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(length) / rate)


def write(path, samples, rate=RATE, width=2):
    """Write (n,) or (n, channels) in [-1, 1] as a WAV file of PCM."""
    samples = np.asarray(samples).reshape(len(samples), -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        levels = np.rint(32767 * samples).astype("<i2")
        file.writeframes(levels.tobytes() if width == 2 else bytes(width * levels.size))


def load(path, **keys):
    """Load a set of sounds; keys are those of `sound_sets.Request` and of `data.load`."""
    names = {*sound_sets.Request._fields} - {"channels"}
    own = {key: keys.pop(key) for key in names & {*keys}}
    return data.load("sound", path=str(path), sounds=sound_sets.Request(**own), **keys)


@pytest.fixture
def recordings(tmp_path):
    """Two digits by two speakers, four recordings each, of two lengths."""
    for digit in "01":
        for speaker in ("ann", "bob"):
            for index in range(4):
                own = tone(500 + 1000 * int(digit), 400 + 100 * index)
                write(tmp_path / f"{digit}_{speaker}_{index}.wav", own)
    return tmp_path


FIELDS = {
    "pattern": "{digit}_{speaker}_{index}.wav",
    "class_fields": ("digit", "speaker"),
    "test_where": "index=0,3-9",
}


def test_file_names_give_classes_and_the_test_split(recordings):
    found = load(recordings, length=0.064, **FIELDS)
    assert found.class_names == ("0 ann", "0 bob", "1 ann", "1 bob") and found.num_classes == 4
    assert len(found.train) == len(found.test) == 8 and found.image_shape == (512, 1)
    own = found.normalization.sound
    assert own.fields == (("digit", ("0", "0", "1", "1")), ("speaker", ("ann", "bob") * 2))
    assert (own.rate, own.length, own.channels, own.kind) == (RATE, 512, 1, "waveform")
    rows = found.train.rows(np.arange(8))
    waves = sound.waves(own, found.normalization.decode(rows["image"]))
    wanted = np.zeros(512)
    wanted[:500] = tone(1500, 500)
    np.testing.assert_allclose(waves[rows["label"] == 2][0, :, 0], wanted, atol=1e-4)


@pytest.mark.parametrize("kind", [sound.waveform(), sound.logmel(8, 64, 32)])
def test_a_set_that_is_too_large_for_the_memory_is_read_batch_by_batch(
    kind, recordings, monkeypatch, tmp_path_factory
):
    """The same numbers as from memory, also after it was sent to a data worker."""
    held = load(recordings, length=0.064, representation=kind, **FIELDS)
    monkeypatch.setattr(sources, "MEMORY", 0)
    large = load(recordings, length=0.064, representation=kind, **FIELDS)
    assert large.rule == f"{held.rule}; too large for the memory, so read batch by batch"
    assert large.normalization == held.normalization
    assert not isinstance(large.train.values, np.ndarray)
    for split in ("train", "test"):
        one, other = (getattr(each, split) for each in (held, large))
        assert len(one) == len(other)
        for source in (other, pickle.loads(pickle.dumps(other))):
            rows, wanted = (each.rows(np.array([5, 0, 5])) for each in (source, one))
            for name in ("image", "label"):
                np.testing.assert_array_equal(rows[name], wanted[name])
    arrays = tmp_path_factory.mktemp("arrays") / "a.npz"
    np.savez(arrays, data=np.stack([tone(f) for f in (300, 500, 900)]).astype("f4"), rate=RATE)
    assert data.arrays(pickle.loads(pickle.dumps(load(arrays).train)))["image"].shape[1:] == (
        512,
        1,
    )


def test_subfolders_are_classes_and_stereo_and_rates_are_brought_to_one(tmp_path):
    for name, frequency in (("high", 1000), ("low", 300)):
        for i in range(6):
            own = tone(frequency, 256 * (1 + i % 2), RATE * (1 + i % 2))
            both = np.stack([own, np.zeros_like(own)], 1) if i % 2 else own
            write(tmp_path / name / f"{i}.wav", both, RATE * (1 + i % 2))
    for key, words in (
        ("rates", "several rates"),
        ("channels", "several numbers of channels"),
    ):
        given = {"rate": 0} if key == "rates" else {"rate": RATE}
        with pytest.raises(UserError, match=words):
            load(tmp_path, **given)
    assert load(tmp_path, rate=RATE, channels=2).image_shape == (256, 2)
    found = load(tmp_path, rate=RATE, channels=1)
    assert found.class_names == ("high", "low") and found.image_shape == (256, 1)
    rows = found.train.rows(np.arange(len(found.train)))
    waves = sound.waves(found.normalization.sound, found.normalization.decode(rows["image"]))
    high = waves[rows["label"] == 0][:, 40:-40, 0]
    # where one channel of two is silent, half the amplitude
    assert {*np.round(4 * np.abs(high).max(1)).tolist()} == {1, 2}
    spectrum = np.abs(np.fft.rfft(high))
    assert (np.abs(spectrum.argmax(1) * RATE / high.shape[1] - 1000) < 50).all()


def test_a_logmel_spectrogram_shows_a_tone_at_its_frequency_and_level():
    scale = logmel.Scale(RATE, 32, 128, 64)
    found = logmel.spectrogram(scale, np.stack([tone(1000, 1024, amplitude=a) for a in (1, 0.1)]))
    assert found.shape == (2, logmel.frames(scale, 1024), 32)
    middle = found[:, 8]
    centers = np.linspace(0, RATE / 2, 129) @ logmel.filters(scale).T
    assert (np.abs(centers[middle.argmax(1)] - 1000) < 80).all()
    # a tenth of the amplitude is 20 dB less
    assert np.ptp(middle.max(1)) == pytest.approx(np.log(10), abs=1e-3)
    assert logmel.spectrogram(scale, np.zeros((1, 1024))).max() == pytest.approx(np.log(1e-4))


def test_the_inverse_of_a_spectrogram_has_nearly_that_spectrogram():
    scale = logmel.Scale(RATE, 48, 128, 32)
    chirp = 0.5 * np.sin(2 * np.pi * (400 + 0.4 * np.arange(1024)) * np.arange(1024) / RATE)
    wanted = logmel.spectrogram(scale, chirp[None])
    made = logmel.sound(scale, wanted, 1024)
    assert made.shape == (1, 1024) and np.abs(made).max() <= 1
    loud = wanted > wanted.max() - 4
    difference = 20 / np.log(10) * (logmel.spectrogram(scale, made) - wanted)[loud]
    assert np.sqrt(np.mean(np.square(difference))) < 2.0  # dB
    np.testing.assert_array_equal(made, logmel.sound(scale, wanted, 1024))


def test_wav_files_of_samples_are_read_back(tmp_path):
    samples = np.stack([tone(500), tone(700)], 1)
    (tmp_path / "a.wav").write_bytes(sound_files.wav(samples, 11025))
    assert sound_files.header(tmp_path / "a.wav") == (11025, 2, 512)
    np.testing.assert_allclose(sound_files.read(tmp_path / "a.wav", 11025, 0), samples, atol=1e-4)


def test_arrays_of_recordings_have_the_same_fields(tmp_path):
    pcm = np.rint(32767 * np.concatenate([tone(500, 300 + i) for i in range(8)])).astype(np.int16)
    offsets = np.append(0, np.cumsum(300 + np.arange(8)))
    arrays = {"pcm": pcm, "offsets": offsets, "digit": np.arange(8) % 2, "index": np.arange(8) // 2}
    names = {"speaker": np.zeros(8, np.uint8), "speakers": np.array(["ann"])}
    np.savez(tmp_path / "a.npz", **arrays, **names, rate=RATE)
    how = {"class_fields": ("digit", "speaker"), "test_where": "index=0"}
    found = load(tmp_path / "a.npz", length=0.04, **how)
    assert found.class_names == ("0 ann", "1 ann") and len(found.test) == 2
    assert found.image_shape == (320, 1)
    np.savez(tmp_path / "b.npz", data=np.zeros((12, 64), np.float32), labels=np.arange(12) % 3)
    with pytest.raises(UserError, match="no 'rate' in Hz: set config.data.rate"):
        load(tmp_path / "b.npz")
    assert load(tmp_path / "b.npz", rate=100).num_classes == 3


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": np.arange(12) / 2}, "'labels' is float64 .12,.; 12 whole numbers or names"),
        ({"labels": np.arange(6)}, "'labels' is int64 .6,."),
        ({"rate": "fast"}, "no 'rate' in Hz"),
        ({"data": None, "pcm": np.zeros(9, np.int16), "offsets": ["a"]}, "'pcm' and 'offsets'"),
    ],
)
def test_arrays_that_are_no_sounds_are_one_line(change, words, tmp_path):
    arrays = {"data": np.zeros((12, 64), np.int16), "rate": [RATE]} | change
    np.savez(tmp_path / "a.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(UserError, match=words):
        load(tmp_path / "a.npz")


def test_sounds_shorter_than_a_window_have_a_picture():
    own = sound.Sound(RATE, 5, 1, "waveform")
    assert sound.spectrograms(own, np.ones((2, 5, 1))).shape[::3] == (2, 1)


def test_more_mels_than_the_window_resolves_are_refused():
    with pytest.raises(UserError, match="3 of 64 mels have no frequency of a window of 64"):
        logmel.filters(logmel.Scale(RATE, 64, 64, 16))


MISTAKES = [
    ({"pattern": "{digit}-{speaker}"}, "does not fit config.data.pattern"),
    ({"pattern": "{digit}{speaker}"}, "text between them"),
    ({**FIELDS, "class_fields": ("digits",)}, "unknown field of config.data.class_fields"),
    ({**FIELDS, "test_where": "index=7"}, "holds out no example"),
    ({**FIELDS, "test_where": "index"}, "must be FIELD=VALUES"),
    ({**FIELDS, "test_where": "digit=1"}, "no training sound is of class '1 ann'"),
    ({"class_fields": ("digit",)}, "set config.data.pattern"),
    ({**FIELDS, "length": 0.0}, "several lengths"),
    ({**FIELDS, "channels": 3}, "mono, 1, or stereo, 2"),
    (
        {**FIELDS, "length": 0.01, "representation": sound.logmel(window=128, hop=64)},
        "80 samples at 8000 Hz; at least 128",
    ),
]


@pytest.mark.parametrize("keys, words", MISTAKES, ids=[words for _, words in MISTAKES])
def test_mistakes_are_one_line(recordings, keys, words):
    with pytest.raises(UserError, match=words) as caught:
        load(recordings, **({"length": 0.064} | keys))
    assert "\n" not in str(caught.value)


def test_hostile_files_are_skipped_up_to_a_limit_and_named(recordings, caplog):
    (recordings / "0_ann_8.wav").write_bytes(b"RIFF\xff\xff\xff\xffWAVEfmt ")
    write(recordings / "0_ann_9.wav", np.zeros((100, 4)))
    pytest.importorskip("soundfile", reason="a file that is no PCM WAV is judged by soundfile")
    found = load(recordings, length=0.064, limit_bad=2, **FIELDS)
    assert len(found.train) == 8 and "skipped unreadable sounds" in caplog.text
    with pytest.raises(UserError, match="more than data.limit_bad=1 unreadable sounds"):
        load(recordings, length=0.064, limit_bad=1, **FIELDS)


def test_files_and_classes_that_are_not_read_are_named(tmp_path, caplog):
    for i in range(9):
        write(tmp_path / "cat" / f"{i}.wav", tone(500))
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "0.mp3").write_bytes(b"ID3")
    assert load(tmp_path).class_names == ("cat",)
    assert "1 .mp3; dog/, which holds nothing that is read (1 .mp3)" in caplog.text
    write(tmp_path / "dog" / "1.wav", np.zeros((2, 3)))
    with pytest.raises(UserError, match="no training sound of class dog is readable"):
        load(tmp_path)


def test_what_needs_soundfile_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    write(tmp_path / "a.wav", np.zeros(100), width=3)
    with pytest.raises(UserError, match="not a WAV file of 16 bits.*pip install"):
        sound_files.header(tmp_path / "a.wav")


def test_flac_is_read(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="FLAC needs soundfile")
    soundfile.write(tmp_path / "a.flac", tone(500), RATE)
    np.testing.assert_allclose(
        sound_files.read(tmp_path / "a.flac", RATE, 0)[:, 0], tone(500), atol=1e-4
    )


def without_length(content: bytes) -> bytes:
    """A FLAC file whose header counts 0 samples, as of a stream."""
    return content[:21] + bytes([content[21] & 0xF0, 0, 0, 0, 0]) + content[26:]


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda x: x[: len(x) // 2], "decoder lost sync"),  # only the header and its start are good
        (lambda x: x[:2000] + bytes(500) + x[2500:], "decoder lost sync"),
        (lambda x: x[:60], "unknown error in flac decoder"),
        (lambda x: b"", "Format not recognised"),
        (without_length, "does not say how long it is"),
    ],
)
def test_damaged_flac_files_are_skipped_and_named(spoil, words, tmp_path, caplog):
    soundfile = pytest.importorskip("soundfile", reason="FLAC needs soundfile")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE)
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.flac", noise, RATE)
    (tmp_path / "3.flac").write_bytes(spoil((tmp_path / "3.flac").read_bytes()))
    loaded = load(tmp_path)
    assert len(loaded.train) + len(loaded.test) == 3 and loaded.image_shape == (2 * RATE, 1)
    assert "3.flac" in caplog.text and words in caplog.text


def test_flac_of_other_depths_rates_and_channels(tmp_path):
    """24 bits are rounded to 16; a rate or number of channels that is not read is named."""
    soundfile = pytest.importorskip("soundfile", reason="FLAC needs soundfile")
    for i, depth in enumerate(("PCM_16", "PCM_24", "PCM_24")):
        soundfile.write(tmp_path / f"{i}.flac", np.stack([tone(500)] * 2, 1), RATE, subtype=depth)
    x = load(tmp_path).train.values
    assert x.shape == (3, 512, 2) and np.abs(x[0].astype(int) - x[1]).max() <= 1
    soundfile.write(tmp_path / "3.flac", tone(500), RATE)
    with pytest.raises(UserError, match="several numbers of channels .*: set data.channels=1"):
        load(tmp_path)
    assert load(tmp_path, channels=1).image_shape == (512, 1)
    for rate, count, words in (
        (655350, 1, "its rate is 655350 Hz"),
        (RATE, 6, "it has 6 channels"),
    ):
        soundfile.write(tmp_path / "3.flac", np.zeros((99, count)), rate)
        with pytest.raises(sound_files.UnreadableSound, match=words):
            sound_files.header(tmp_path / "3.flac")


def test_sounds_that_cannot_be_held_are_refused(tmp_path):
    """A rate that makes a second of 384,000 samples of one sample."""
    np.savez(tmp_path / "a.npz", data=np.zeros((3, 1000), np.int16), rate=1)
    with pytest.raises(UserError, match="384,000,000 samples, and at most 67,108,864 are read"):
        load(tmp_path / "a.npz", rate=384_000)


@pytest.mark.parametrize(
    "value, words", [(np.nan, "NaN or infinite"), (30_000.0, "reach 30000, and full scale is 1")]
)
def test_samples_of_floats_that_are_no_sound_name_the_file(value, words, tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="WAV of floats needs soundfile")
    for i in range(3):
        write(tmp_path / f"{i}.wav", tone(500))
    soundfile.write(tmp_path / "z.wav", [*tone(500, 511), value], RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=f"z.wav .it.*{words}"):
        load(tmp_path, limit_bad=0)


def test_a_header_that_lies_is_bounded_by_the_file(tmp_path):
    write(tmp_path / "a.wav", tone(500))
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[40:44] = (10**9).to_bytes(4, "little")  # the bytes of all samples
    (tmp_path / "a.wav").write_bytes(content)
    assert sound_files.header(tmp_path / "a.wav").length == 512
    content[36:40] = b"LIST"  # a part before the samples, which ends after the file
    (tmp_path / "a.wav").write_bytes(content)
    pytest.importorskip("soundfile", reason="a file that is no PCM WAV is judged by soundfile")
    with pytest.raises(sound_files.UnreadableSound):
        sound_files.header(tmp_path / "a.wav")


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("no sound")
    with pytest.raises(UserError, match=r"no WAV or FLAC files; it holds 1 \.txt"):
        load(tmp_path)
