"""Tiny pipelines of text-to-video and text-to-audio, and encoders of sounds, as they are published:
ModelScope's TextToVideoSD, Wan, AudioLDM, AudioLDM 2; Wav2Vec2 and CLAP. Seeded, a few thousand
weights each.
"""

from pathlib import Path
from typing import Any

import torch
from tiny_diffusion import TEXT_WIDTH, make_text_encoder, make_tokenizer, make_vae

RATE = 16_000
SOUND_WIDTH = 16


def make_text_to_video(folder: Path, seed: int = 0) -> Path:
    """ModelScope's text-to-video: a UNet over frames, a VAE for each frame."""
    from diffusers import DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    unet = UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    with torch.no_grad():  # else prompts hardly matter
        for name, parameter in unet.named_parameters():
            if "attn2" in name:
                parameter.mul_(8)
    pipeline = TextToVideoSDPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
        ),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_wan(folder: Path, seed: int = 0) -> Path:
    """Wan 2.1: a transformer over a video's latents, a VAE that takes four frames as one."""
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(seed)
    tokenizer = _t5_tokenizer()
    encoder = UMT5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    pipeline = WanPipeline(
        vae=AutoencoderKLWan(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ),
        text_encoder=UMT5EncoderModel(encoder),
        tokenizer=tokenizer,
        transformer=WanTransformer3DModel(
            **{"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16},
            **{"freq_dim": 16, "ffn_dim": 32, "num_layers": 1, "rope_max_seq_len": 32},
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer_2=None,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _t5_tokenizer() -> Any:
    """One token a letter."""
    from transformers import T5Tokenizer

    letters = ["▁", *map(chr, range(33, 127))]
    pieces = ["<pad>", "</s>", "<unk>", *letters]
    return T5Tokenizer(
        vocab=[(piece, -float(at)) for at, piece in enumerate(pieces)],
        extra_ids=0,
        model_max_length=32,
    )


def _vocoder() -> Any:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=RATE,
            upsample_initial_channel=16,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            normalize_before=False,
        )
    )
    with torch.no_grad():  # else every sound is nearly silence
        for parameter in vocoder.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return vocoder


def _sound_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=2,
    )


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
    )


def make_audioldm(folder: Path, seed: int = 0) -> Path:
    """AudioLDM: a UNet over spectrograms, guided by one vector of CLAP's text tower."""
    from diffusers import AudioLDMPipeline, UNet2DConditionModel
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    torch.manual_seed(seed)
    tokenizer = _clap_tokenizer()
    config = ClapTextConfig(**_clap_text(tokenizer))
    pipeline = AudioLDMPipeline(
        vae=_sound_vae(),
        text_encoder=ClapTextModelWithProjection(config),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=(8, 16),
            attention_head_dim=4,
            norm_num_groups=4,
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=SOUND_WIDTH,
            class_embeddings_concat=True,
        ),
        scheduler=_ddim(),
        vocoder=_vocoder(),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_audioldm2(folder: Path, seed: int = 0) -> Path:
    """AudioLDM 2: guided by a T5, and by what a GPT-2 goes on with after CLAP and T5."""
    from diffusers import (
        AudioLDM2Pipeline,
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
    )
    from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    tokenizer, second = _clap_tokenizer(), _t5_tokenizer()
    t5 = T5Config(vocab_size=len(second), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    gpt = GPT2Config(n_embd=16, n_head=2, n_layer=1, n_positions=64, vocab_size=32, **ends)
    gpt.max_new_tokens = 4
    pipeline = AudioLDM2Pipeline(
        vae=_sound_vae(),
        text_encoder=_clap(tokenizer),
        text_encoder_2=T5EncoderModel(t5),
        projection_model=AudioLDM2ProjectionModel(
            text_encoder_dim=SOUND_WIDTH, text_encoder_1_dim=16, langauge_model_dim=16
        ),
        language_model=GPT2LMHeadModel(gpt),
        tokenizer=tokenizer,
        tokenizer_2=second,
        feature_extractor=_clap_extractor(),
        unet=AudioLDM2UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=([None, 16, 16], [None, 16, 16]),
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=_ddim(),
        vocoder=_vocoder(),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_stable_audio(folder: Path, seed: int = 0) -> Path:
    """Stable Audio: a transformer over a stereo waveform's latents."""
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    tokenizer = _t5_tokenizer()
    t5 = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    pipeline = StableAudioPipeline(
        vae=AutoencoderOobleck(
            **{"encoder_hidden_size": 4, "downsampling_ratios": [4, 4], "decoder_channels": 4},
            **{"decoder_input_channels": 4, "channel_multiples": [1, 2], "sampling_rate": RATE},
        ),
        text_encoder=T5EncoderModel(t5),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=16, conditioning_dim=16, min_value=0, max_value=10
        ),
        tokenizer=tokenizer,
        transformer=StableAudioDiTModel(
            **{"sample_size": 256, "in_channels": 4, "out_channels": 4, "num_layers": 1},
            **{"attention_head_dim": 8, "num_attention_heads": 2, "time_proj_dim": 16},
            **{"num_key_value_attention_heads": 2, "cross_attention_dim": 16},
            **{"cross_attention_input_dim": 16, "global_states_input_dim": 32},
        ),
        scheduler=EDMDPMSolverMultistepScheduler(),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _clap_tokenizer() -> Any:
    """RoBERTa's, one token a byte."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import RobertaTokenizer

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    vocabulary = {word: at for at, word in enumerate(words)}
    return RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=24)


def _clap_text(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "projection_dim": SOUND_WIDTH,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _clap(tokenizer: Any) -> Any:
    from transformers import ClapConfig, ClapModel

    audio = {
        **{"spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4]},
        **{"depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16, "window_size": 4},
        **{"patch_embeds_hidden_size": 8, "num_hidden_layers": 2, "projection_dim": SOUND_WIDTH},
        **{"enable_fusion": False},
    }
    return ClapModel(
        ClapConfig(
            text_config=_clap_text(tokenizer), audio_config=audio, projection_dim=SOUND_WIDTH
        )
    )


def _clap_extractor() -> Any:
    from transformers import ClapFeatureExtractor

    return ClapFeatureExtractor(
        feature_size=16, sampling_rate=8_000, max_length_s=2, truncation="rand_trunc"
    )


def make_clap(folder: Path, seed: int = 5) -> Path:
    """A whole CLAP with its feature extractor."""
    torch.manual_seed(seed)
    tokenizer = _clap_tokenizer()
    _clap(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _clap_extractor().save_pretrained(folder)
    return folder


def make_wav2vec2(folder: Path, seed: int = 6) -> Path:
    """A Wav2Vec2 encoder with its feature extractor."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        hidden_size=SOUND_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_kernel=(10, 8),
        conv_stride=(5, 4),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)
    return folder
