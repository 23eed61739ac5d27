use std::collections::{HashMap, VecDeque};
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
/// Batches prepared ahead of the one that is captioned.
const AHEAD: usize = 4;

/// What came of looking at some validation images.
#[derive(Default)]
struct Sighted {
    /// Which images could be decoded, ascending.
    numbers: Vec<usize>,
    /// Of each of them.
    candidates: Vec<Candidate>,
    /// Unit embeddings of all of them, batch by batch.
    embeddings: Vec<Tensor>,
}

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
        let Sighted { numbers, candidates, embeddings } = self.caption(share.clone())?;
        let embedding = self.state.models.evaluator.architecture().embedding as i64;
        let own = Tensor::zeros([per_rank as i64, embedding], (Kind::Float, self.device));
        let places: Vec<i64> = numbers.iter().map(|number| (number - share.start) as i64).collect();
        let embeddings = Tensor::cat(&[own.narrow(0, 0, 0)].into_iter().chain(embeddings).collect::<Vec<_>>(), 0);
        let own = own.index_copy(0, &Tensor::from_slice(&places).to_device(self.device), &embeddings);
        let all = Tensor::cat(&collective.all_gather(&own)?, 0).narrow(0, 0, images as i64);
        let mut candidates = candidates.into_iter();
        for numbers in numbers.chunks(BATCH) {
            self.not_abandoned()?;
            let candidates: Vec<Candidate> = candidates.by_ref().take(numbers.len()).collect();
            let scores = self.evaluator_scores(&candidates, numbers, &all);
            let items = numbers.iter().zip(candidates).zip(scores).map(|((&number, candidate), scores)| {
                self.item(&self.data.split(Split::Validation)[number], candidate, scores)
            });
            let items = items.collect();
            self.report(Message::EvaluationItems(v1::EvaluationItems { generation, evaluation, items }));
        }
        Ok(())
    }

    /// A caption for each image of a share of the validation split, but for those that cannot be decoded and may be left
    /// out. Hidden states, which are large, are let go batch by batch.
    fn caption(&self, share: Range<usize>) -> Result<Sighted, Stop> {
        let mut sighted = Sighted::default();
        let mut parts = share.clone().step_by(BATCH).map(|from| from..share.end.min(from + BATCH));
        let start = |part: Range<usize>| self.loader.images(Split::Validation, part.start, part.end);
        let mut pending: VecDeque<_> = parts.by_ref().take(AHEAD).map(start).collect();
        while let Some(batch) = pending.pop_front() {
            self.not_abandoned()?;
            let batch = batch.wait()?;
            pending.extend(parts.next().map(start));
            if batch.samples.is_empty() {
                continue;
            }
            let numbers: Vec<usize> = batch.samples.iter().map(|sample| sample.image).collect();
            let hidden = self.state.models.hidden(&batch, 0..numbers.len());
            sighted.embeddings.push(self.state.models.embeddings(&batch, 0..numbers.len(), &hidden));
            sighted.candidates.extend(self.candidates(&numbers, &hidden));
            sighted.numbers.extend(numbers);
        }
        Ok(sighted)
    }

    fn candidates(&self, numbers: &[usize], hidden: &Tensor) -> Vec<Candidate> {
        let items = numbers.iter().map(|&number| (number, &self.data.split(Split::Validation)[number]));
        let stage = self.state.position.unwrap_or_default().stage as usize;
        if self.objective(stage) == Objective::Contrastive {
            return items.map(|(number, item)| Candidate::written(item, number)).collect();
        }
        let found = self.state.models.captioner.search(hidden, &self.search());
        let captions = found.iter().map(|beams| self.origins.captioner_vocabulary.decode(&beams[0].tokens));
        captions
            .zip(items)
            .map(|(caption, (_, item))| Candidate { caption, references: item.captions.clone() })
            .collect()
    }

    /// PAC-S of candidates of images `numbers` and, of a caption's cosines with all validation images, whether its own
    /// image's is the highest.
    fn evaluator_scores(&self, candidates: &[Candidate], numbers: &[usize], images: &Tensor) -> Vec<(f64, f64)> {
        let (evaluator, vocabulary) = (&self.state.models.evaluator, &self.origins.evaluator_vocabulary);
        let most = evaluator.architecture().text.context_length;
        let texts: Vec<Vec<i64>> =
            candidates.iter().map(|candidate| vocabulary.encode(&candidate.caption, most)).collect();
        let texts = TokenBatch::new(&texts, vocabulary.end(), self.device);
        let numbers: Vec<i64> = numbers.iter().map(|&number| number as i64).collect();
        let numbers = Tensor::from_slice(&numbers).to_device(self.device);
        no_grad(|| {
            let texts = evaluator.text.embed(&texts);
            let pac_s = pac_s(&images.index_select(0, &numbers), &texts);
            let cosines = texts.matmul(&images.transpose(0, 1));
            let own = cosines.gather(1, &numbers.unsqueeze(1), false);
            let better = cosines.gt_tensor(&own).sum_dim_intlist(1, false, Kind::Int64);
            let count = texts.size()[0];
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
