"""Make the audio samples in ``audio/``, from which the sandbox composes its recordings.

This is only needed to change the samples: the sandbox itself reads the committed files. It needs ``lameenc`` (LAME as a
Python package) and, for the spoken samples, the program ``espeak-ng``::

    pip install lameenc && python airflow_provider_amplemarket/sandbox/make_audio.py
"""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import sys
import wave
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

FOLDER = Path(__file__).with_name("audio")
RATE = 16_000
BITRATE = 16
SPOKEN = {
    "greeting": "Hello, this is Robin from Example Company. Do you have a minute to talk about next quarter?",
    "voicemail": "You have reached the sandbox. Nobody is here. Please leave a message after the tone.",
}


def tone(seconds: float, *frequencies: float, fade: float = 0.02) -> array[int]:
    """Return a mix of sine tones as 16 bit samples.

    :param seconds: How long the tones sound.
    :param frequencies: The frequencies in hertz.
    :param fade: Seconds in which the tones get louder and softer, so that nothing clicks.
    """
    count = int(seconds * RATE)

    def at(index: int) -> int:
        envelope = min(1.0, index / (fade * RATE), (count - index) / (fade * RATE))
        mix = sum(math.sin(2 * math.pi * frequency * index / RATE) for frequency in frequencies)
        return int(9_000 * envelope * mix / len(frequencies))

    return array("h", map(at, range(count)))


def silence(seconds: float) -> array[int]:
    """Return silence.

    :param seconds: How long the silence lasts.
    """
    return array("h", bytes(2 * int(seconds * RATE)))


def speech(text: str) -> array[int]:
    """Return a text as espeak-ng speaks it.

    :param text: The text.
    """
    command = ["espeak-ng", "--stdout", "-s", "165", text]
    with wave.open(io.BytesIO(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)) as source:
        rate, samples = source.getframerate(), array("h")
        samples.frombytes(source.readframes(source.getnframes()))
    return resample(samples, rate)


def resample(samples: Sequence[int], rate: int) -> array[int]:
    """Return samples at `RATE`, by linear interpolation, which is good enough for a telephone voice.

    :param samples: The samples.
    :param rate: Their rate in hertz.
    """
    step = rate / RATE

    def at(index: int) -> int:
        place, share = divmod(index * step, 1)
        left, right = samples[int(place)], samples[int(place) + 1]
        return int(left + (right - left) * share)

    return array("h", map(at, range(int((len(samples) - 2) / step))))


def encode(samples: array[int]) -> bytes:
    """Return mono samples as an MP3 of constant bit rate, without any tag.

    :param samples: 16 bit samples at `RATE`.
    """
    import lameenc  # type: ignore[import-not-found,import-untyped,unused-ignore]

    encoder = lameenc.Encoder()
    encoder.silence()
    encoder.set_channels(1)
    encoder.set_in_sample_rate(RATE)
    encoder.set_bit_rate(BITRATE)
    encoder.set_quality(2)
    return bytes(encoder.encode(samples.tobytes())) + bytes(encoder.flush())


def main() -> int:
    """Write every sample that can be made here."""
    samples: dict[str, Callable[[], array[int]]] = {
        "chord": lambda: tone(1, 262, 330) + tone(1, 294, 349, 440) + tone(2, 262, 330, 392, 523, fade=0.4),
        "ringback": lambda: tone(1.5, 440, 480) + silence(1.5) + tone(1.5, 440, 480) + silence(0.5),
        "greeting": lambda: speech(SPOKEN["greeting"]),
        "voicemail": lambda: speech(SPOKEN["voicemail"]) + silence(0.2) + tone(0.5, 1000),
    }
    for name, make in samples.items():
        if name in SPOKEN and not shutil.which("espeak-ng"):
            print(f"{name}: left as it is, there is no espeak-ng here", file=sys.stderr)
            continue
        path = FOLDER / f"{name}.mp3"
        path.write_bytes(encode(make()))
        print(f"{path.name}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
