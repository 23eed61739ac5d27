use std::collections::HashMap;
use std::ops::Range;

use dataset::{Item, Split};
use proto::v1::{self, worker_message::Message};
use runfile::Objective;
use tch::{Kind, Tensor, no_grad};

use super::{Stop, Trainer};
use crate::clip::pac_s;
use crate::text::TokenBatch;

/// Images captioned at once.
const BATCH: usize = 50;

impl Trainer {
    /// Captions this rank's share of the validation split and scores what can be scored here.
    ///
    /// After a stage that trained the evaluator, what is scored are captions that people wrote, each against the others of
    /// its image: the level that generated captions are to be compared with.
    pub(super) fn evaluate(&self, generation: u64, evaluation: u64) -> Result<(), Stop> {
        let collective = self.collective()?;
        let (rank, world) = (collective.rank(), collective.world_size());
        let images = self.data.split(Split::Validation).len();
        let per_rank = images.div_ceil(world);
        let share = (rank * per_rank).min(images)..((rank + 1) * per_rank).min(images);
        let (hidden, embeddings) = self.validation_sight(share.clone())?;
        let embedding = self.state.models.evaluator.architecture().embedding as i64;
        let missing = Tensor::zeros([(per_rank - share.len()) as i64, embedding], (Kind::Float, self.device));
        let own = Tensor::cat(&embeddings.iter().chain([&missing]).collect::<Vec<_>>(), 0);
        let all = Tensor::cat(&collective.all_gather(&own)?, 0).narrow(0, 0, images as i64);
        for (number, hidden) in hidden.iter().enumerate() {
            let from = share.start + number * BATCH;
            let candidates = self.candidates(from, hidden);
            let texts: Vec<String> = candidates.iter().map(|candidate| candidate.caption.clone()).collect();
            let scores = self.evaluator_scores(&texts, from, &all);
            let items = candidates.into_iter().zip(scores).enumerate().map(|(i, (candidate, scores))| {
                self.item(&self.data.split(Split::Validation)[from + i], candidate, scores)
            });
            let items = items.collect();
            self.report(Message::EvaluationItems(v1::EvaluationItems { generation, evaluation, items }));
            if self.abandon.is_raised() {
                return Err(crate::collective::Broken::Abandoned.into());
            }
        }
        Ok(())
    }

    /// Hidden states and embeddings of some validation images, batch by batch.
    fn validation_sight(&self, share: Range<usize>) -> Result<(Vec<Tensor>, Vec<Tensor>), Stop> {
        let parts = share.clone().step_by(BATCH).map(|from| (from, share.end.min(from + BATCH)));
        let pending: Vec<_> =
            parts.map(|(from, to)| (to - from, self.loader.images(Split::Validation, from, to))).collect();
        let sights = pending.into_iter().map(|(count, pending)| {
            let batch = pending.wait()?;
            if batch.skipped > 0 {
                let reason = format!("{} validation images cannot be decoded: take them out", batch.skipped);
                return Err(Stop::Fatal(reason));
            }
            let hidden = self.state.models.hidden(&batch, 0..count);
            let embeddings = self.state.models.embeddings(&batch, 0..count, &hidden);
            Ok((hidden, embeddings))
        });
        sights.collect()
    }

    fn candidates(&self, from: usize, hidden: &Tensor) -> Vec<Candidate> {
        let items = &self.data.split(Split::Validation)[from..from + hidden.size()[0] as usize];
        let stage = self.state.position.unwrap_or_default().stage as usize;
        if self.objective(stage) == Objective::Contrastive {
            return items.iter().enumerate().map(|(i, item)| Candidate::written(item, from + i)).collect();
        }
        let found = self.state.models.captioner.search(hidden, &self.search());
        let captions = found.iter().map(|beams| self.origins.captioner_vocabulary.decode(&beams[0].tokens));
        captions.zip(items).map(|(caption, item)| Candidate { caption, references: item.captions.clone() }).collect()
    }

    /// PAC-S and, of a caption's cosines with all validation images, whether its own image's is the highest.
    fn evaluator_scores(&self, texts: &[String], from: usize, images: &Tensor) -> Vec<(f64, f64)> {
        let (evaluator, vocabulary) = (&self.state.models.evaluator, &self.origins.evaluator_vocabulary);
        let most = evaluator.architecture().text.context_length;
        let texts: Vec<Vec<i64>> = texts.iter().map(|text| vocabulary.encode(text, most)).collect();
        let texts = TokenBatch::new(&texts, vocabulary.end(), self.device);
        no_grad(|| {
            let texts = evaluator.text.embed(&texts);
            let count = texts.size()[0];
            let pac_s = pac_s(&images.narrow(0, from as i64, count), &texts);
            let cosines = texts.matmul(&images.transpose(0, 1));
            let own = cosines.diagonal(from as i64, 0, 1).unsqueeze(1);
            let better = cosines.gt_tensor(&own).sum_dim_intlist(1, false, Kind::Int64);
            (0..count).map(|i| (pac_s.double_value(&[i]), f64::from(better.int64_value(&[i]) == 0))).collect()
        })
    }

    fn item(&self, item: &Item, candidate: Candidate, (pac_s, first): (f64, f64)) -> v1::EvaluationItem {
        let words = candidate.caption.split_whitespace().count() as f64;
        let mut scores = HashMap::from([
            ("pac_s".to_owned(), pac_s),
            ("retrieval_r1".to_owned(), first),
            ("mean_length".to_owned(), words),
        ]);
        if let Some(scene) = self.scenes.as_ref().and_then(|scenes| scenes.get(&item.name)) {
            let verdict = world::judge(&candidate.caption, scene);
            scores.insert("grammatical".to_owned(), f64::from(verdict.grammatical));
            scores.insert("truthful".to_owned(), f64::from(verdict.truthful));
            scores.insert("details".to_owned(), f64::from(verdict.details));
        }
        let Candidate { caption, references } = candidate;
        v1::EvaluationItem { image: item.name.clone(), caption, references, scores }
    }
}

struct Candidate {
    caption: String,
    references: Vec<String>,
}

impl Candidate {
    /// One of the image's own captions, against the others (or itself where there is no other).
    fn written(item: &Item, number: usize) -> Self {
        let mut references = item.captions.clone();
        let caption = references.swap_remove(number % references.len());
        if references.is_empty() {
            references.push(caption.clone());
        }
        Self { caption, references }
    }
}
