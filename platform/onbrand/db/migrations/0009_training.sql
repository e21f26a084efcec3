-- depends: 0007_audit
-- What the data doctor said of a job's pictures, kept with the job.
set role onbrand_owner;

alter table app.lora_training_jobs add column findings jsonb not null default '[]'
  check (jsonb_typeof(findings) = 'array' and octet_length(findings::text) <= 2000000);
grant update (findings) on app.lora_training_jobs to brand_system;

reset role;
