PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE checkpoints (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, name TEXT NOT NULL,
    parameters_sha256 TEXT NOT NULL, at REAL NOT NULL, deleted REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "checkpoints" VALUES(0,4,1,'0-xe-00000004','00000000000000000000000000000000000000000000000044eabf56fc237ba4',1.79590323987998962398e+09,1.79590323992589950561e+09);
INSERT INTO "checkpoints" VALUES(0,8,1,'0-xe-00000008','00000000000000000000000000000000000000000000000023e3087724ca66b0',1.79590323990865397452e+09,1.79590323993251276013e+09);
INSERT INTO "checkpoints" VALUES(0,12,1,'0-xe-00000012','0000000000000000000000000000000000000000000000000918c16f16020733',1.79590323991699886323e+09,NULL);
INSERT INTO "checkpoints" VALUES(1,4,1,'1-dico-00000004','0000000000000000000000000000000000000000000000009f01953bf3f99281',1.79590323992996573447e+09,1.79590323996951818467e+09);
INSERT INTO "checkpoints" VALUES(1,8,1,'1-dico-00000008','0000000000000000000000000000000000000000000000000b6ad29fd27d5c84',1.79590323996862506871e+09,NULL);
INSERT INTO "checkpoints" VALUES(1,10,1,'1-dico-00000010','0000000000000000000000000000000000000000000000007fa80dbae3591e73',1.79590323996936345103e+09,NULL);
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
INSERT INTO "evaluations" VALUES(0,6,1,'{"cider":0.0}',1.79590323989990019795e+09);
INSERT INTO "evaluations" VALUES(0,12,1,'{"cider":2.0}',1.7959032399263033867e+09);
INSERT INTO "evaluations" VALUES(1,5,1,'{"cider":2.0}',1.79590323994671726228e+09);
CREATE TABLE events (at REAL NOT NULL, kind TEXT NOT NULL, detail_json TEXT NOT NULL);
INSERT INTO "events" VALUES(1.79590323986386132242e+09,'joined','{"fingerprint":"5b1f","holds":null,"host":"host 1","rank":0,"skipped_images":0,"train_captions":31,"train_images":7,"validation_images":120}');
INSERT INTO "events" VALUES(1.79590323992667222027e+09,'guard','{"action":"warn","bound":2.5,"metric":"kl","stage":1,"step":1,"value":6.0}');
INSERT INTO "events" VALUES(1.79590323992755079266e+09,'guard','{"action":"warn","bound":2.5,"metric":"kl","stage":1,"step":3,"value":6.0}');
INSERT INTO "events" VALUES(1.79590323994581866264e+09,'guard','{"action":"warn","bound":2.5,"metric":"kl","stage":1,"step":5,"value":5.0}');
INSERT INTO "events" VALUES(1.79590323994693136216e+09,'guard','{"action":"pause","bound":4.5,"metric":"kl","stage":1,"step":6,"value":5.0}');
INSERT INTO "events" VALUES(1.7959032399498467445e+09,'paused','{"reason":"kl is 5.0000, above 4.5 at stage 1 step 6","stage":1,"step":6}');
INSERT INTO "events" VALUES(1.79590323996584343905e+09,'guard','{"action":"warn","bound":2.5,"metric":"kl","stage":1,"step":9,"value":5.0}');
INSERT INTO "events" VALUES(1.79590323996883845332e+09,'guard','{"action":"pause","bound":4.5,"metric":"kl","stage":1,"step":10,"value":5.0}');
INSERT INTO "events" VALUES(1.79590323996975541115e+09,'resumed','{"at":"stage 1 step 10","reason":"kl is 5.0000, above 4.5 at stage 1 step 6"}');
CREATE TABLE generations (
    number INTEGER PRIMARY KEY, members_json TEXT NOT NULL, cause TEXT NOT NULL, formed_at REAL NOT NULL, ready_at REAL,
    ended_at REAL, ended_because TEXT, source TEXT NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL);
INSERT INTO "generations" VALUES(1,'[{"device":"","host":"host 1","rank":0,"version":""}]','start',1.79590323987029027935e+09,1.79590323987091970438e+09,NULL,NULL,'seed',0,0);
CREATE TABLE run (name TEXT NOT NULL, seed INTEGER NOT NULL, run_file_json TEXT NOT NULL, created REAL NOT NULL);
INSERT INTO "run" VALUES('test',0,'{"name":"test","seed":0,"output":"runs/test","workers":{"min":1,"max":4},"data":{"karpathy":{"annotations":"annotations.json","images":"images"},"coco":null,"webdataset":null,"scenes":null,"positives":null,"features":null,"skip_corrupt":false},"vocabulary":"full","captioner":{"preset":"tiny","weights":null,"vision":null,"dropout":0.1},"evaluator":{"preset":null,"weights":"clip.safetensors","score":"pac_s","prefix":"A photo depicts ","reward_prefix":""},"decoding":{"beams":5,"max_length":30,"length_penalty":1.0,"begin_counts_when_cut":false},"scoring":{"meteor_jar":null,"meteor_paraphrases":null,"spice_jar":null},"stages":[{"name":"xe","objective":"cross_entropy","steps":12,"batch":8,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":6,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4},{"name":"dico","objective":"dico","steps":10,"batch":4,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":5,"evaluate_first":false,"metric":null,"patience":null,"guard":[{"metric":"kl","above":2.5,"below":null,"for":1,"action":"warn"},{"metric":"kl","above":4.5,"below":null,"for":2,"action":"pause"}],"checkpoint_every":4}],"precision":"f32","wire":"f32","checkpoints":{"to":null,"keep":2},"control":{"lost_after":10.0,"stall_after":300.0,"window":8,"sharding":"equal"}}',1.79590323986270427704e+09);
CREATE TABLE steps (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, loss REAL, learning_rate REAL,
    gradient_norm REAL, seconds REAL, all_reduce_seconds REAL, samples INTEGER NOT NULL, summaries_json TEXT NOT NULL,
    at REAL NOT NULL, slowest_rank INTEGER, lag_seconds REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "steps" VALUES(0,1,1,0.0,0.0,0.0,0.170157177,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323987784242633e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,2,1,0.0,0.0,0.0,0.137926449,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323987820267678e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,3,1,0.0,0.0,0.0,0.27763909,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323987862968439e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,4,1,0.0,0.0,0.0,0.203601531,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323987879681589e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,5,1,0.0,0.0,0.0,0.202023544,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323988046693805e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,6,1,0.0,0.0,0.0,0.180260695,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323988085961339e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,7,1,0.0,0.0,0.0,0.281830577,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1795903239.90202,NULL,NULL);
INSERT INTO "steps" VALUES(0,8,1,0.0,0.0,0.0,0.147473056,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323990600132936e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,9,1,0.0,0.0,0.0,0.227240818,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323991048717499e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,10,1,0.0,0.0,0.0,0.295919789,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.7959032399140284061e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,11,1,0.0,0.0,0.0,0.235410632,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323991469883921e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,12,1,0.0,0.0,0.0,0.234939199,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1795903239.91653,NULL,NULL);
INSERT INTO "steps" VALUES(1,1,1,0.0,0.0,0.0,0.141999758,0.0,4,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590323992704439162e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,2,1,0.0,0.0,0.0,0.116112187,0.0,4,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590323992732524868e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,3,1,0.0,0.0,0.0,0.146170421,0.0,4,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.7959032399278140068e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,4,1,0.0,0.0,0.0,0.087853027,0.0,4,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590323992811799055e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,5,1,0.0,0.0,0.0,0.106050895,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323994639897348e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,6,1,0.0,0.0,0.0,0.104745469,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323995797657968e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,7,1,0.0,0.0,0.0,0.065732292,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590323996045207982e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,8,1,0.0,0.0,0.0,0.119006222,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590323996074628827e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,9,1,0.0,0.0,0.0,0.085216862,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323996832084653e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,10,1,0.0,0.0,0.0,0.097093032,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323996907734872e+09,NULL,NULL);
CREATE INDEX events_by_kind ON events (kind);
CREATE VIEW cuts AS
    SELECT number - 1 AS generation, stage, step FROM generations
    UNION ALL SELECT detail_json ->> 'generation', detail_json ->> 'stage', detail_json ->> 'step'
    FROM events WHERE kind = 'stage_ended';
COMMIT;
