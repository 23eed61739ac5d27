PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE checkpoints (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, name TEXT NOT NULL,
    parameters_sha256 TEXT NOT NULL, at REAL NOT NULL, deleted REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "checkpoints" VALUES(0,4,1,'0-xe-00000004','00000000000000000000000000000000000000000000000044eabf56fc237ba4',1.79590324000003886224e+09,1.79590324001852536198e+09);
INSERT INTO "checkpoints" VALUES(0,8,1,'0-xe-00000008','00000000000000000000000000000000000000000000000023e3087724ca66b0',1.79590324000591540333e+09,1.79590324002147364622e+09);
INSERT INTO "checkpoints" VALUES(0,12,1,'0-xe-00000012','0000000000000000000000000000000000000000000000000918c16f16020733',1.79590324001835680012e+09,NULL);
INSERT INTO "checkpoints" VALUES(1,4,1,'1-dico-00000004','0000000000000000000000000000000000000000000000009f01953bf3f99281',1.7959032400212929249e+09,NULL);
INSERT INTO "checkpoints" VALUES(1,8,1,'1-dico-00000008','0000000000000000000000000000000000000000000000000b6ad29fd27d5c84',1.79590324003040337566e+09,1.79590324003066587445e+09);
CREATE TABLE evaluation_items (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, image TEXT NOT NULL, caption TEXT NOT NULL,
    references_json TEXT NOT NULL, scores_json TEXT NOT NULL, PRIMARY KEY (stage, step, generation, image)) WITHOUT ROWID;
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 000','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 025','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 050','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 075','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 100','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,1,'image 000','0 12 0918c16f16020733','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,1,'image 025','0 12 0918c16f16020733','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,1,'image 050','0 12 0918c16f16020733','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,1,'image 075','0 12 0918c16f16020733','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,1,'image 100','0 12 0918c16f16020733','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,1,'image 000','1 5 363d657112bf895d','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,1,'image 025','1 5 363d657112bf895d','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,1,'image 050','1 5 363d657112bf895d','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,1,'image 075','1 5 363d657112bf895d','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,1,'image 100','1 5 363d657112bf895d','[]','{}');
CREATE TABLE evaluations (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, metrics_json TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "evaluations" VALUES(0,6,1,'{"cider":5.0}',1.79590324000069618227e+09);
INSERT INTO "evaluations" VALUES(0,12,1,'{"cider":6.0}',1.79590324001878595345e+09);
INSERT INTO "evaluations" VALUES(1,5,1,'{"cider":5.0}',1.7959032400219049454e+09);
CREATE TABLE events (at REAL NOT NULL, kind TEXT NOT NULL, detail_json TEXT NOT NULL);
INSERT INTO "events" VALUES(1.79590323999804139139e+09,'joined','{"fingerprint":"5b1f","holds":null,"host":"host 1","rank":0,"skipped_images":0,"train_captions":31,"train_images":7,"validation_images":120}');
INSERT INTO "events" VALUES(1.79590324002311682704e+09,'guard','{"action":"rollback","bound":4.5,"metric":"kl","stage":1,"step":7,"value":5.0}');
INSERT INTO "events" VALUES(1.79590324003052973747e+09,'stage_ended','{"generation":1,"reason":"the guard: kl is 5.0000, above 4.5 at stage 1 step 7","stage":1,"step":4}');
INSERT INTO "events" VALUES(1.79590324003091025353e+09,'rollback','{"from":{"stage":1,"step":9},"generation":2,"source":"checkpoint 1-dico-00000004","to":{"stage":1,"step":4}}');
CREATE TABLE generations (
    number INTEGER PRIMARY KEY, members_json TEXT NOT NULL, cause TEXT NOT NULL, formed_at REAL NOT NULL, ready_at REAL,
    ended_at REAL, ended_because TEXT, source TEXT NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL);
INSERT INTO "generations" VALUES(1,'[{"device":"","host":"host 1","rank":0,"version":""}]','start',1.79590323999854421617e+09,1.7959032399988029003e+09,1.79590324003077363972e+09,'stage dico ends with its state at step 4: the guard: kl is 5.0000, above 4.5 at stage 1 step 7','seed',0,0);
INSERT INTO "generations" VALUES(2,'[{"device":"","host":"host 1","rank":0,"version":""}]','stage dico ends with its state at step 4: the guard: kl is 5.0000, above 4.5 at stage 1 step 7',1.79590324003104829793e+09,1.79590324003115296364e+09,NULL,NULL,'checkpoint 1-dico-00000004',1,4);
CREATE TABLE run (name TEXT NOT NULL, seed INTEGER NOT NULL, run_file_json TEXT NOT NULL, created REAL NOT NULL);
INSERT INTO "run" VALUES('test',0,'{"name":"test","seed":0,"output":"runs/test","workers":{"min":1,"max":4},"data":{"karpathy":{"annotations":"annotations.json","images":"images"},"coco":null,"webdataset":null,"scenes":null,"positives":null,"features":null,"skip_corrupt":false},"vocabulary":"full","captioner":{"preset":"tiny","weights":null,"vision":null,"dropout":0.1},"evaluator":{"preset":null,"weights":"clip.safetensors","score":"pac_s","prefix":"A photo depicts ","reward_prefix":""},"decoding":{"beams":5,"max_length":30,"length_penalty":1.0,"begin_counts_when_cut":false},"scoring":{"meteor_jar":null,"meteor_paraphrases":null,"spice_jar":null},"stages":[{"name":"xe","objective":"cross_entropy","steps":12,"batch":8,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":6,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4},{"name":"dico","objective":"dico","steps":10,"batch":4,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":5,"evaluate_first":false,"metric":null,"patience":null,"guard":[{"metric":"kl","above":4.5,"below":null,"for":2,"action":"rollback"}],"checkpoint_every":4},{"name":"last","objective":"dico","steps":10,"batch":4,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":5,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4}],"precision":"f32","wire":"f32","checkpoints":{"to":null,"keep":2},"control":{"lost_after":10.0,"stall_after":300.0,"window":8,"sharding":"equal"}}',1.79590323999250078205e+09);
CREATE TABLE steps (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, loss REAL, learning_rate REAL,
    gradient_norm REAL, seconds REAL, all_reduce_seconds REAL, samples INTEGER NOT NULL, summaries_json TEXT NOT NULL,
    at REAL NOT NULL, slowest_rank INTEGER, lag_seconds REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "steps" VALUES(0,1,1,0.0,0.0,0.0,0.170157177,0.0,8,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323999908757206e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,2,1,0.0,0.0,0.0,0.137926449,0.0,8,'{"kl":{"count":1,"max":3.0,"mean":3.0,"min":3.0,"p05":3.0,"p25":3.0,"p50":3.0,"p75":3.0,"p95":3.0}}',1.79590323999937963488e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,3,1,0.0,0.0,0.0,0.27763909,0.0,8,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590323999961662296e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,4,1,0.0,0.0,0.0,0.203601531,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323999986290932e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,5,1,0.0,0.0,0.0,0.202023544,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590324000023651121e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,6,1,0.0,0.0,0.0,0.180260695,0.0,8,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590324000048613545e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,7,1,0.0,0.0,0.0,0.281830577,0.0,8,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590324000101828573e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,8,1,0.0,0.0,0.0,0.147473056,0.0,8,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590324000124621395e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,9,1,0.0,0.0,0.0,0.227240818,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324000641250613e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,10,1,0.0,0.0,0.0,0.295919789,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590324000679945944e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,11,1,0.0,0.0,0.0,0.235410632,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590324001060104366e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,12,1,0.0,0.0,0.0,0.234939199,0.0,8,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590324001806926732e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,1,1,0.0,0.0,0.0,0.141999758,0.0,4,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.7959032400203268528e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,2,1,0.0,0.0,0.0,0.116112187,0.0,4,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1795903240.02062,NULL,NULL);
INSERT INTO "steps" VALUES(1,3,1,0.0,0.0,0.0,0.146170421,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590324002083635323e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,4,1,0.0,0.0,0.0,0.087853027,0.0,4,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590324002107214924e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,5,1,0.0,0.0,0.0,0.106050895,0.0,4,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324002168893816e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,6,1,0.0,0.0,0.0,0.104745469,0.0,4,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.7959032400228686333e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,7,1,0.0,0.0,0.0,0.065732292,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590324002354121205e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,8,1,0.0,0.0,0.0,0.119006222,0.0,4,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.7959032400299551487e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,9,1,0.0,0.0,0.0,0.085216862,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590324003016686442e+09,NULL,NULL);
INSERT INTO "steps" VALUES(2,1,2,0.0,0.0,0.0,0.062551009,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590324003129100799e+09,NULL,NULL);
INSERT INTO "steps" VALUES(2,2,2,0.0,0.0,0.0,0.058449427,0.0,4,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1795903240.03142,NULL,NULL);
INSERT INTO "steps" VALUES(2,3,2,0.0,0.0,0.0,0.068511453,0.0,4,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590324003154063227e+09,NULL,NULL);
CREATE INDEX events_by_kind ON events (kind);
CREATE VIEW cuts AS
    SELECT number - 1 AS generation, stage, step FROM generations
    UNION ALL SELECT detail_json ->> 'generation', detail_json ->> 'stage', detail_json ->> 'step'
    FROM events WHERE kind = 'stage_ended';
COMMIT;
