-- depends: 0030_queue
-- Where a training begins: at a published model of the brand, or at the last checkpoint of the job that it retries. And
-- an early end of its owner's wish, with what it has learned by then.
set role onbrand_owner;

alter table app.lora_training_jobs
  add column start_model_id uuid,
  add column retry_of uuid,
  add column run_id uuid,
  add column stop_requested_at timestamptz,
  add foreign key (brand_id, start_model_id) references app.models (brand_id, id) on delete set null (start_model_id),
  add foreign key (brand_id, retry_of) references app.lora_training_jobs (brand_id, id) on delete set null (retry_of);
call app.keep_no_statistics('app.lora_training_jobs');
create index jobs_by_start_model on app.lora_training_jobs (brand_id, start_model_id) where start_model_id is not null;
create index jobs_by_retry on app.lora_training_jobs (brand_id, retry_of) where retry_of is not null;
-- The run of an earlier job, whose checkpoints this one goes on from; null: its own. Two jobs never write one run at once.
create unique index jobs_one_writer on app.lora_training_jobs (brand_id, run_id)
  where run_id is not null and status in ('pending', 'training');

-- A request to stop stands like one to cancel. What ended may still lose the links to a job or a model that is deleted.
create or replace function app.tg_job_guard() returns trigger
language plpgsql set search_path = '' as $$
declare may_change text[] := array['name', 'model_id', 'model_url', 'start_model_id', 'retry_of'];
begin
  if (old.cancel_requested_at is not null and new.cancel_requested_at is distinct from old.cancel_requested_at)
     or (old.stop_requested_at is not null and new.stop_requested_at is distinct from old.stop_requested_at) then
    raise exception 'a request to cancel stands' using errcode = 'OB003';
  end if;
  if old.model_id is not null and new.model_id is null then new.model_url := null; end if;
  if (new.start_model_id is not null and new.start_model_id is distinct from old.start_model_id)
     or (new.retry_of is not null and new.retry_of is distinct from old.retry_of) then
    raise exception 'a job begins where it was created to begin' using errcode = '42501';
  end if;
  if old.status not in ('completed', 'failed', 'canceled') then return new; end if;
  if to_jsonb(new) - may_change is distinct from to_jsonb(old) - may_change
     or (new.model_id is not null and new.model_id is distinct from old.model_id)
     or (new.model_url is not null and new.model_url is distinct from old.model_url) then
    raise exception 'the job has ended' using errcode = 'OB002';
  end if;
  return new;
end $$;

grant insert (start_model_id, retry_of, run_id), update (stop_requested_at) on app.lora_training_jobs to authenticated;

reset role;
