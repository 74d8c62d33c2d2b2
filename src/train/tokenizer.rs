//! The caption tokenizer: byte-level BPE (Sennrich et al. 2016), trained on the corpus.

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::error::{Error, ErrorKind, Result};

pub const PAD: i64 = 0;
pub const BOS: i64 = 1;
pub const EOS: i64 = 2;

const SPECIAL: [&str; 3] = ["<pad>", "<bos>", "<eos>"];

/// Learns a vocabulary of at most `vocab_size` entries from `captions`.
pub fn train(captions: &[String], vocab_size: usize) -> Result<Tokenizer> {
    let special = SPECIAL.map(|token| AddedToken::from(token, true)).to_vec();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = tokenizers::TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(ByteLevel::new(true, true, true)))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(ByteLevelDecoder::default()))
        .build()
        .map_err(failed)?;
    tokenizer.train(&mut trainer, captions.iter()).map_err(failed)?;
    // Reparsed as the generic `Tokenizer`.
    let text = tokenizer.to_string(false).map_err(failed)?;
    text.parse().map_err(failed)
}

/// The tokens of each caption, with the begin and end tokens.
pub fn encode(tokenizer: &Tokenizer, captions: &[String]) -> Result<Vec<Vec<u16>>> {
    let encodings = tokenizer
        .encode_batch(captions.iter().map(String::as_str).collect(), false)
        .map_err(failed)?;
    Ok(encodings
        .iter()
        .map(|encoding| {
            let words = encoding.get_ids().iter().map(|id| *id as u16);
            std::iter::once(BOS as u16).chain(words).chain(std::iter::once(EOS as u16)).collect()
        })
        .collect())
}

fn failed(error: tokenizers::Error) -> Error {
    Error::new(ErrorKind::Internal, "the tokenizer failed").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_round_trips() {
        let captions: Vec<String> =
            ["a dog runs", "a cat sleeps on a bed", "two dogs run"].map(String::from).to_vec();
        let tokenizer = train(&captions, 300).unwrap();
        let tokens = encode(&tokenizer, &captions).unwrap();
        assert_eq!((tokens[1][0], *tokens[1].last().unwrap()), (BOS as u16, EOS as u16));
        let ids: Vec<u32> = tokens[1].iter().map(|id| u32::from(*id)).collect();
        assert_eq!(tokenizer.decode(&ids, true).unwrap().trim(), captions[1]);
        assert_eq!(tokenizer.token_to_id("<pad>"), Some(PAD as u32));
    }
}
