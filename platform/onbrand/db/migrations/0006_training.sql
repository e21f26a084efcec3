-- depends: 0005_content
-- Training jobs, the assets that they use, and the models that they make.
set role onbrand_owner;

-- A job starts from the base model, from a published model of the brand (start_model_id), or from the last checkpoint
-- of the job that it retries (retry_of). run_id is the run of an earlier job whose checkpoints this job continues;
-- null: its own run. stop_requested_at asks for an early end that keeps the current result.
create table app.lora_training_jobs (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  name text not null check (char_length(name) between 1 and 200),
  model_type text not null check (model_type in ('sd15', 'sdxl', 'flux')),
  training_config jsonb not null default '{}'
    check (jsonb_typeof(training_config) = 'object' and octet_length(training_config::text) <= 100000),
  status text not null default 'pending' check (status in ('pending', 'training', 'completed', 'failed', 'canceled')),
  progress integer not null default 0 check (progress between 0 and 100),
  provider text not null default 'ray' check (provider in ('ray', 'replicate', 'runpod')),
  provider_job_id text check (char_length(provider_job_id) <= 200),
  attempts integer not null default 0 check (attempts >= 0),
  model_id uuid,
  model_url text,
  sample_images_urls jsonb not null default '[]' check (jsonb_typeof(sample_images_urls) = 'array'),
  error jsonb,
  metrics jsonb not null default '{}',
  cancel_requested_at timestamptz,
  heartbeat_at timestamptz,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  completed_at timestamptz,
  num_workers integer not null default 1 check (num_workers between 1 and 64),
  waiting_for text check (waiting_for in ('brand', 'platform', 'resources', 'operator')),
  waiting_since timestamptz,
  start_model_id uuid,
  retry_of uuid,
  run_id uuid,
  stop_requested_at timestamptz,
  primary key (brand_id, id),
  check ((waiting_for is null) = (waiting_since is null)),
  foreign key (brand_id, retry_of) references app.lora_training_jobs (brand_id, id) on delete set null (retry_of)
);
create index jobs_by_time on app.lora_training_jobs (brand_id, created_at, id);
create index jobs_open_by_brand on app.lora_training_jobs (brand_id, created_at)
  where status in ('pending', 'training');
create index jobs_by_start_model on app.lora_training_jobs (brand_id, start_model_id) where start_model_id is not null;
create index jobs_by_retry on app.lora_training_jobs (brand_id, retry_of) where retry_of is not null;
-- Two jobs never write the same run at the same time.
create unique index jobs_one_writer on app.lora_training_jobs (brand_id, run_id)
  where run_id is not null and status in ('pending', 'training');

-- This is a join table and not an array of ids, because an array would accept ids of another brand.
create table app.job_assets (
  brand_id text not null,
  job_id uuid not null,
  asset_id uuid not null,
  primary key (brand_id, job_id, asset_id),
  foreign key (brand_id, job_id) references app.lora_training_jobs (brand_id, id) on delete cascade,
  foreign key (brand_id, asset_id) references app.brand_assets (brand_id, id) on delete cascade
);
create index job_assets_by_asset on app.job_assets (brand_id, asset_id);

create table app.models (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  job_id uuid,
  user_id uuid not null,
  model_type text not null check (model_type in ('sd15', 'sdxl', 'flux')),
  version integer not null check (version > 0),
  name text not null generated always as (model_type || '-lora-v' || version::text) stored,
  object_name text not null collate "C" check (split_part(object_name, '/', 1) = brand_id),
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  bytes bigint not null check (bytes > 0),
  rank integer not null check (rank between 1 and 1024),
  trigger_word text not null check (char_length(trigger_word) between 1 and 100),
  base_revision text not null check (char_length(base_revision) <= 200),
  metrics jsonb not null default '{}',
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, id),
  unique (brand_id, model_type, version),
  unique (brand_id, object_name),
  unique (brand_id, job_id),
  foreign key (brand_id, job_id) references app.lora_training_jobs (brand_id, id) on delete set null (job_id)
);
create index models_by_time on app.models (brand_id, created_at, id);
-- Jobs and models refer to each other.
alter table app.lora_training_jobs
  add foreign key (brand_id, model_id) references app.models (brand_id, id) on delete set null (model_id),
  add foreign key (brand_id, start_model_id) references app.models (brand_id, id) on delete set null (start_model_id);

-- A request to cancel or to stop cannot be withdrawn. After a job has ended, only its name may change, and the links to
-- a job or a model that is deleted may become null.
create function app.tg_job_guard() returns trigger
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
create trigger job_guard before update on app.lora_training_jobs for each row execute function app.tg_job_guard();
create trigger creator_is_member after insert on app.lora_training_jobs
  for each row when (current_user = 'authenticated') execute function private.tg_creator_is_member();

-- An asset cannot be deleted while a job that has not ended uses it.
create function app.tg_asset_guard() returns trigger
language plpgsql set search_path = '' as $$
begin
  if exists (select 1 from app.job_assets ja join app.lora_training_jobs j
      on j.brand_id = ja.brand_id and j.id = ja.job_id
      where ja.brand_id = old.brand_id and ja.asset_id = old.id and j.status in ('pending', 'training')) then
    raise exception 'a training job that has not ended uses this asset' using errcode = 'OB004';
  end if;
  return old;
end $$;
create trigger asset_guard before delete on app.brand_assets for each row execute function app.tg_asset_guard();

-- Isolation and scopes.
call app.enable_brand_isolation('app.lora_training_jobs');
call app.enable_brand_isolation('app.job_assets');
call app.enable_brand_isolation('app.models');
call app.require_scope('app.lora_training_jobs', 'insert', 'train');
call app.require_scope('app.lora_training_jobs', 'update', 'train');
call app.require_scope('app.lora_training_jobs', 'delete', 'manage');
call app.require_scope('app.job_assets', 'insert', 'train');
call app.require_scope('app.models', 'delete', 'manage');

-- Grants and permissive policies; the policies of brand_system are in 0011_background.
grant select, delete on app.lora_training_jobs to authenticated;
grant insert (brand_id, user_id, name, model_type, training_config, provider, num_workers, start_model_id, retry_of,
  run_id) on app.lora_training_jobs to authenticated;
grant update (name, cancel_requested_at, stop_requested_at) on app.lora_training_jobs to authenticated;
grant select on app.lora_training_jobs to brand_system;
grant update (status, progress, provider_job_id, attempts, model_id, model_url, sample_images_urls, error, metrics,
  heartbeat_at, started_at, completed_at, waiting_for, waiting_since) on app.lora_training_jobs to brand_system;
create policy member_select on app.lora_training_jobs for select to authenticated using (true);
create policy member_insert on app.lora_training_jobs for insert to authenticated
  with check (user_id = (select private.uid()));
create policy owner_update on app.lora_training_jobs for update to authenticated
  using (user_id = (select private.uid())) with check (user_id = (select private.uid()));
create policy admin_delete on app.lora_training_jobs for delete to authenticated
  using ((select private.is_admin()));

grant select on app.job_assets to authenticated, brand_system;
grant insert (brand_id, job_id, asset_id) on app.job_assets to authenticated;
create policy member_select on app.job_assets for select to authenticated using (true);
create policy owner_insert on app.job_assets for insert to authenticated with check (exists (
  select 1 from app.lora_training_jobs j where j.brand_id = job_assets.brand_id and j.id = job_assets.job_id
    and j.user_id = (select private.uid()) and j.status = 'pending'));

grant select, delete on app.models to authenticated;
grant select on app.models to brand_system;
grant insert (brand_id, job_id, user_id, model_type, version, object_name, sha256, bytes, rank, trigger_word,
  base_revision, metrics) on app.models to brand_system;
create policy member_select on app.models for select to authenticated using (true);
create policy admin_delete on app.models for delete to authenticated
  using ((select private.is_admin()));

reset role;

grant select (brand_id, name, created_at) on app.models to onbrand_definer;

set role onbrand_definer;

-- The models that the credential reaches in all of its brands: per brand, first its own models, newest first, then the
-- base models. The arguments `after_...` are the last row of the previous page.
create function private.my_models(families text[], after_brand text, after_base boolean, after_age numeric,
  after_name text, n integer)
returns table (brand_id text, is_base boolean, age numeric, name text, created_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select x.brand_id, x.is_base, x.age, x.name, x.created_at from (
    select b.id as brand_id, false as is_base, -extract(epoch from m.created_at) as age, m.name, m.created_at
    from private.my_brands(null, null) b join app.models m on m.brand_id = b.id
    union all
    select b.id, true, f.at, f.name, null
    from private.my_brands(null, null) b cross join unnest(my_models.families) with ordinality f (name, at)
  ) x
  where my_models.after_brand is null or (x.brand_id, x.is_base, x.age, x.name)
    > (my_models.after_brand, my_models.after_base, my_models.after_age, my_models.after_name)
  order by x.brand_id, x.is_base, x.age, x.name limit least(my_models.n, 1001)
$$;

reset role;

grant execute on function private.my_models(text[], text, boolean, numeric, text, integer) to authenticated;
