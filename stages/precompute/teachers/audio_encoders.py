"""Models that embed the sounds of a text-to-audio teacher.

`transformers:PATH_OR_ID` is a Wav2Vec2, HuBERT, WavLM or similar model of waveforms, whose last
hidden states are averaged over time, or a CLAP, whose projected audio features are taken, with its
feature extractor. In: B sounds of one length and sampling rate; out: [B, E], not normalised. E is
known from the configuration, before weights are read. Sounds are resampled (polyphase, SciPy's
default filter) to the rate that the model was trained on.
"""

from math import gcd

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.errors import JobError, TeacherSourceError
from ...pretrained import LOCAL_ONLY, quiet_transformers, read_config, refusing
from .image_encoders import MediaEncoder

_ONLY_IN_TRAINING = "masked_spec_embed"


class AudioEncoder(MediaEncoder):
    """Sounds in, embeddings [B, dim] out."""

    form = "transformers"

    def __init__(self, source: str) -> None:
        super().__init__(source)
        if not (self._folder / "preprocessor_config.json").is_file():
            raise TeacherSourceError(f"audio_encoder {source}: holds no preprocessor_config.json")
        config = read_config(self._folder, TeacherSourceError)
        self._projects = config.model_type == "clap"
        width = getattr(config, "projection_dim" if self._projects else "hidden_size", None)
        if not (self._projects or hasattr(config, "conv_stride")) or not width:
            raise TeacherSourceError(
                f"audio_encoder {source}: a {config.model_type} is no known model of sounds; "
                "choose a Wav2Vec2, HuBERT, WavLM or CLAP model"
            )
        self.dim = int(width)

    def load(self, dtype: torch.dtype, device: torch.device) -> None:
        """Build the model, frozen."""
        from transformers import AutoFeatureExtractor, AutoModel

        with refusing(TeacherSourceError, f"audio_encoder {self._folder}"), quiet_transformers():
            self._extractor = AutoFeatureExtractor.from_pretrained(self._folder, **LOCAL_ONLY)
            model, report = AutoModel.from_pretrained(
                self._folder,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **LOCAL_ONLY,
            )
        if lacking := {name for name in report["missing_keys"] if _ONLY_IN_TRAINING not in name}:
            raise TeacherSourceError(
                f"audio_encoder {self._folder}: the weights lack {min(lacking)}, which would be "
                "random; use a checkpoint of the whole model"
            )
        self._model = self._frozen(model, dtype, device)

    def check_length(self, seconds: float) -> None:
        """Raises JobError for sounds of which the model would read a random part."""
        most = getattr(self._extractor, "max_length_s", None)
        if self._projects and most is not None and seconds > most:
            raise JobError(
                f"audio_seconds: {seconds:g}, but this CLAP reads {most:g} and takes them from "
                "anywhere; choose no more"
            )

    def __call__(self, sounds_BS: npt.NDArray[np.float32], rate: int) -> torch.Tensor:
        """Embed B sounds of S samples at `rate` a second: [B, dim]."""
        own = self._extractor.sampling_rate
        # One by one: of a batch of short sounds, CLAP's marks one at random as a long one.
        read = [
            self._extractor(sound, sampling_rate=own, return_tensors="pt")
            for sound in resampled(sounds_BS, rate, own)
        ]
        inputs = {}
        for name in read[0]:
            values = torch.cat([torch.as_tensor(each[name]) for each in read])
            inputs[name] = values.to(
                self._device, self._dtype if values.is_floating_point() else None
            )
        if not self._projects:
            # It draws which layers to drop, and drops none outside of training.
            with torch.random.fork_rng(devices=[]):
                states_BTH = self._model(**inputs).last_hidden_state
            mean_BH: torch.Tensor = states_BTH.float().mean(dim=1)
            return mean_BH
        features = self._model.get_audio_features(**inputs)
        found: torch.Tensor = getattr(features, "pooler_output", features)
        return found


def resampled(sounds_BS: npt.NDArray[np.float32], rate: int, own: int) -> npt.NDArray[np.float32]:
    """Sounds [B, S] at another sampling rate."""
    if rate == own:
        return sounds_BS
    from scipy.signal import resample_poly

    common = gcd(rate, own)
    found = resample_poly(sounds_BS, own // common, rate // common, axis=1)
    return np.ascontiguousarray(found, dtype=np.float32)


def audio_encoder(reference: str) -> AudioEncoder:
    """The encoder of a 'transformers:SOURCE' reference, checked but not loaded."""
    form, _, source = reference.partition(":")
    if form != AudioEncoder.form or not source:
        raise JobError(f"audio_encoder {reference!r}: is not transformers:PATH_OR_ID")
    return AudioEncoder(source)
