PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE checkpoints (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, name TEXT NOT NULL,
    parameters_sha256 TEXT NOT NULL, at REAL NOT NULL, deleted REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "checkpoints" VALUES(0,4,1,'0-xe-00000004','00000000000000000000000000000000000000000000000044eabf56fc237ba4',1.79590323947791123387e+09,1.79590323958203887944e+09);
INSERT INTO "checkpoints" VALUES(0,8,1,'0-xe-00000008','00000000000000000000000000000000000000000000000023e3087724ca66b0',1.7959032395218822956e+09,1.79590323955379438402e+09);
INSERT INTO "checkpoints" VALUES(0,8,3,'0-xe-00000008.3','0000000000000000000000000000000000000000000000001798d123f074a12b',1.79590323956595897671e+09,1.79590323959385037423e+09);
INSERT INTO "checkpoints" VALUES(0,12,3,'0-xe-00000012.3','000000000000000000000000000000000000000000000000f7dd54c881b677e6',1.79590323957835173605e+09,NULL);
INSERT INTO "checkpoints" VALUES(1,4,3,'1-dico-00000004','00000000000000000000000000000000000000000000000055a3c89a1729386d',1.79590323959251713754e+09,NULL);
CREATE TABLE evaluation_items (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, image TEXT NOT NULL, caption TEXT NOT NULL,
    references_json TEXT NOT NULL, scores_json TEXT NOT NULL, PRIMARY KEY (stage, step, generation, image)) WITHOUT ROWID;
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 000','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 025','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 050','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 075','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 100','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,3,'image 000','0 6 31156a4672cbae31','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,3,'image 025','0 6 31156a4672cbae31','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,3,'image 050','0 6 31156a4672cbae31','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,3,'image 075','0 6 31156a4672cbae31','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,3,'image 100','0 6 31156a4672cbae31','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,3,'image 000','0 12 f7dd54c881b677e6','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,3,'image 025','0 12 f7dd54c881b677e6','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,3,'image 050','0 12 f7dd54c881b677e6','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,3,'image 075','0 12 f7dd54c881b677e6','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,3,'image 100','0 12 f7dd54c881b677e6','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,3,'image 000','1 5 0003883fea38dc14','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,3,'image 025','1 5 0003883fea38dc14','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,3,'image 050','1 5 0003883fea38dc14','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,3,'image 075','1 5 0003883fea38dc14','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,3,'image 100','1 5 0003883fea38dc14','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,4,'image 000','1 5 d598f5d016a16b12','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,4,'image 025','1 5 d598f5d016a16b12','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,4,'image 050','1 5 d598f5d016a16b12','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,4,'image 075','1 5 d598f5d016a16b12','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,4,'image 100','1 5 d598f5d016a16b12','[]','{}');
CREATE TABLE evaluations (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, metrics_json TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "evaluations" VALUES(0,6,1,'{"cider":0.0}',1.79590323949906587605e+09);
INSERT INTO "evaluations" VALUES(0,6,3,'{"cider":0.0}',1.79590323956184816358e+09);
INSERT INTO "evaluations" VALUES(0,12,3,'{"cider":6.0}',1.79590323958235526091e+09);
INSERT INTO "evaluations" VALUES(1,5,3,'{"cider":2.0}',1.79590323959799456595e+09);
INSERT INTO "evaluations" VALUES(1,5,4,'{"cider":2.0}',1.79590323961842632293e+09);
CREATE TABLE events (at REAL NOT NULL, kind TEXT NOT NULL, detail_json TEXT NOT NULL);
INSERT INTO "events" VALUES(1.79590323946241116519e+09,'joined','{"fingerprint":"5b1f","holds":null,"host":"host 1","rank":0,"skipped_images":0,"train_captions":31,"train_images":7,"validation_images":120}');
INSERT INTO "events" VALUES(1.79590323954194712634e+09,'lost','{"host":"host 1","rank":0,"reason":"rank 0 was lost: its stream closed"}');
INSERT INTO "events" VALUES(1.79590323955083847043e+09,'joined','{"fingerprint":"5b1f","holds":null,"host":"host 2","rank":0,"skipped_images":0,"train_captions":31,"train_images":7,"validation_images":120}');
INSERT INTO "events" VALUES(1.79590323955148339265e+09,'rollback','{"from":{"stage":0,"step":11},"generation":2,"source":"checkpoint 0-xe-00000008","to":{"stage":0,"step":8}}');
INSERT INTO "events" VALUES(1.79590323955276465412e+09,'checkpoint_damaged','{"checkpoint":"0-xe-00000008","rank":0,"reason":"it is damaged"}');
INSERT INTO "events" VALUES(1.79590323955531191825e+09,'rollback','{"from":{"stage":0,"step":8},"generation":3,"source":"checkpoint 0-xe-00000004","to":{"stage":0,"step":4}}');
INSERT INTO "events" VALUES(1.79590323960181117053e+09,'lost','{"host":"host 2","rank":0,"reason":"rank 0 was lost: it was not heard for 10 s"}');
INSERT INTO "events" VALUES(1.79590323960958123204e+09,'joined','{"fingerprint":"5b1f","holds":null,"host":"host 3","rank":0,"skipped_images":0,"train_captions":31,"train_images":7,"validation_images":120}');
INSERT INTO "events" VALUES(1.79590323961042904856e+09,'rollback','{"from":{"stage":1,"step":6},"generation":4,"source":"checkpoint 1-dico-00000004","to":{"stage":1,"step":4}}');
CREATE TABLE generations (
    number INTEGER PRIMARY KEY, members_json TEXT NOT NULL, cause TEXT NOT NULL, formed_at REAL NOT NULL, ready_at REAL,
    ended_at REAL, ended_because TEXT, source TEXT NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL);
INSERT INTO "generations" VALUES(1,'[{"device":"","host":"host 1","rank":0,"version":""}]','start',1.79590323946265339851e+09,1.79590323946283841136e+09,1.79590323954912972452e+09,'rank 0 was lost: its stream closed','seed',0,0);
INSERT INTO "generations" VALUES(2,'[{"device":"","host":"host 2","rank":0,"version":""}]','rank 0 was lost: its stream closed',1.79590323955228400223e+09,NULL,1.79590323955409288409e+09,'rank 0 failed: it is damaged','checkpoint 0-xe-00000008',0,8);
INSERT INTO "generations" VALUES(3,'[{"device":"","host":"host 2","rank":0,"version":""}]','rank 0 failed: it is damaged',1.79590323955563902855e+09,1.79590323955577969546e+09,1.79590323960580635067e+09,'rank 0 was lost: it was not heard for 10 s','checkpoint 0-xe-00000004',0,4);
INSERT INTO "generations" VALUES(4,'[{"device":"","host":"host 3","rank":0,"version":""}]','rank 0 was lost: it was not heard for 10 s',1.79590323961405539518e+09,1795903239.61452,NULL,NULL,'checkpoint 1-dico-00000004',1,4);
CREATE TABLE run (name TEXT NOT NULL, seed INTEGER NOT NULL, run_file_json TEXT NOT NULL, created REAL NOT NULL);
INSERT INTO "run" VALUES('test',0,'{"name":"test","seed":0,"output":"runs/test","workers":{"min":1,"max":4},"data":{"karpathy":{"annotations":"annotations.json","images":"images"},"coco":null,"webdataset":null,"scenes":null,"positives":null,"features":null,"skip_corrupt":false},"vocabulary":"full","captioner":{"preset":"tiny","weights":null,"vision":null,"dropout":0.1},"evaluator":{"preset":null,"weights":"clip.safetensors","score":"pac_s","prefix":"A photo depicts ","reward_prefix":""},"decoding":{"beams":5,"max_length":30,"length_penalty":1.0,"begin_counts_when_cut":false},"scoring":{"meteor_jar":null,"meteor_paraphrases":null,"spice_jar":null},"stages":[{"name":"xe","objective":"cross_entropy","steps":12,"batch":8,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":6,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4},{"name":"dico","objective":"dico","steps":10,"batch":4,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":5,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4}],"precision":"f32","wire":"f32","checkpoints":{"to":null,"keep":2},"control":{"lost_after":10.0,"stall_after":300.0,"window":8,"sharding":"equal"}}',1.79590323945981669424e+09);
CREATE TABLE steps (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, loss REAL, learning_rate REAL,
    gradient_norm REAL, seconds REAL, all_reduce_seconds REAL, samples INTEGER NOT NULL, summaries_json TEXT NOT NULL,
    at REAL NOT NULL, slowest_rank INTEGER, lag_seconds REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "steps" VALUES(0,1,1,0.0,0.0,0.0,0.170157177,0.0,8,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590323946342873568e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,2,1,0.0,0.0,0.0,0.137926449,0.0,8,'{"kl":{"count":1,"max":3.0,"mean":3.0,"min":3.0,"p05":3.0,"p25":3.0,"p50":3.0,"p75":3.0,"p95":3.0}}',1.79590323946380519865e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,3,1,0.0,0.0,0.0,0.27763909,0.0,8,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1795903239.46586,NULL,NULL);
INSERT INTO "steps" VALUES(0,4,1,0.0,0.0,0.0,0.203601531,0.0,8,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323946997308733e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,5,1,0.0,0.0,0.0,0.202023544,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1795903239.48588,NULL,NULL);
INSERT INTO "steps" VALUES(0,5,3,0.0,0.0,0.0,0.21210179,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590323955791234967e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,6,1,0.0,0.0,0.0,0.180260695,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323949385786061e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,6,3,0.0,0.0,0.0,0.263763643,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323955884671215e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,7,1,0.0,0.0,0.0,0.281830577,0.0,8,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590323950590062141e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,7,3,0.0,0.0,0.0,0.131464585,0.0,8,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590323956237077709e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,8,1,0.0,0.0,0.0,0.147473056,0.0,8,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590323951391053194e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,8,3,0.0,0.0,0.0,0.244720913,0.0,8,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590323956357502937e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,9,1,0.0,0.0,0.0,0.227240818,0.0,8,'{"kl":{"count":1,"max":3.0,"mean":3.0,"min":3.0,"p05":3.0,"p25":3.0,"p50":3.0,"p75":3.0,"p95":3.0}}',1.7959032395296051502e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,9,3,0.0,0.0,0.0,0.242741215,0.0,8,'{"kl":{"count":1,"max":3.0,"mean":3.0,"min":3.0,"p05":3.0,"p25":3.0,"p50":3.0,"p75":3.0,"p95":3.0}}',1.79590323956989431379e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,10,1,0.0,0.0,0.0,0.295919789,0.0,8,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590323953387641904e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,10,3,0.0,0.0,0.0,0.219309702,0.0,8,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590323957389211653e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,11,1,0.0,0.0,0.0,0.235410632,0.0,8,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323953853774072e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,11,3,0.0,0.0,0.0,0.138001728,0.0,8,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323957434940338e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,12,3,0.0,0.0,0.0,0.25147768,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590323957806158065e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,1,3,0.0,0.0,0.0,0.061809729,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323958591842647e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,2,3,0.0,0.0,0.0,0.135740675,0.0,4,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590323958663630483e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,3,3,0.0,0.0,0.0,0.116743571,0.0,4,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323959018015862e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,4,3,0.0,0.0,0.0,0.086841979,0.0,4,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590323959221935274e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,5,3,0.0,0.0,0.0,0.102605591,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590323959428977969e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,5,4,0.0,0.0,0.0,0.13647632,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590323961810970302e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,6,3,0.0,0.0,0.0,0.143268748,0.0,4,'{"kl":{"count":1,"max":3.0,"mean":3.0,"min":3.0,"p05":3.0,"p25":3.0,"p50":3.0,"p75":3.0,"p95":3.0}}',1.79590323959930801391e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,6,4,0.0,0.0,0.0,0.051171156,0.0,4,'{"kl":{"count":1,"max":3.0,"mean":3.0,"min":3.0,"p05":3.0,"p25":3.0,"p50":3.0,"p75":3.0,"p95":3.0}}',1.79590323962206602093e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,7,4,0.0,0.0,0.0,0.064715123,0.0,4,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590323962586593631e+09,NULL,NULL);
CREATE INDEX events_by_kind ON events (kind);
CREATE VIEW cuts AS
    SELECT number - 1 AS generation, stage, step FROM generations
    UNION ALL SELECT detail_json ->> 'generation', detail_json ->> 'stage', detail_json ->> 'step'
    FROM events WHERE kind = 'stage_ended';
COMMIT;
