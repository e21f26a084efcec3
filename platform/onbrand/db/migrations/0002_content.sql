-- depends: 0001_brands
-- What a brand has: stored objects, assets and captions, training jobs, models, generations, pictures, events.
set role onbrand_owner;

-- Every object in a bucket that belongs to a row has a row here; brand_id is read off the key once, when it is written.
create table storage.buckets (id text primary key);
create table storage.objects (
  bucket_id text not null references storage.buckets,
  name text not null collate "C" check (octet_length(name) <= 900
    and name ~ '^[a-z0-9][a-z0-9-]{1,62}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){1,6}$'),
  brand_id text not null generated always as (split_part(name, '/', 1)) stored,
  user_id uuid not null,
  content_type text not null check (char_length(content_type) <= 100),
  bytes bigint not null check (bytes >= 0),
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, bucket_id, name)
);

create table app.brand_assets (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  name text not null check (char_length(name) between 1 and 255),
  type text not null default 'image' check (type in ('image')),
  object text not null check (object in ('logo', 'product', 'person', 'packaging', 'other')),
  object_name text not null collate "C" check (split_part(object_name, '/', 1) = brand_id),
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  content_type text not null check (content_type in ('image/png', 'image/jpeg', 'image/webp')),
  bytes bigint not null check (bytes > 0),
  width integer not null check (width > 0),
  height integer not null check (height > 0),
  metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object' and octet_length(metadata::text) <= 20000),
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, id),
  unique (brand_id, object_name),
  unique (brand_id, sha256)
);
create index brand_assets_by_time on app.brand_assets (brand_id, created_at, id);

create table app.asset_captions (
  brand_id text not null,
  asset_id uuid not null,
  version integer not null check (version > 0),
  caption text not null check (char_length(caption) <= 5000),
  user_id uuid not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, asset_id, version),
  foreign key (brand_id, asset_id) references app.brand_assets (brand_id, id) on delete cascade
);

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
  primary key (brand_id, id)
);
create index jobs_by_time on app.lora_training_jobs (brand_id, created_at, id);

-- A join table and not an array of ids: an array accepts another brand's ids.
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
alter table app.lora_training_jobs add foreign key (brand_id, model_id)
  references app.models (brand_id, id) on delete set null (model_id);

create table app.generations (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  model_id uuid,
  model_type text not null check (model_type in ('sd15', 'sdxl', 'flux')),
  model_name text not null check (char_length(model_name) <= 100),
  prompt text not null check (char_length(prompt) between 1 and 20000),
  negative_prompt text not null default '' check (char_length(negative_prompt) <= 20000),
  num_images integer not null check (num_images between 1 and 64),
  width integer not null check (width > 0),
  height integer not null check (height > 0),
  seed bigint not null check (seed >= 0),
  num_inference_steps integer not null check (num_inference_steps > 0),
  guidance_scale double precision not null,
  true_cfg_scale double precision not null,
  lora_scale double precision not null,
  output_format text not null check (output_format in ('png', 'jpeg', 'webp')),
  status text not null default 'pending' check (status in ('pending', 'running', 'completed', 'failed', 'canceled')),
  progress integer not null default 0 check (progress between 0 and 100),
  error jsonb,
  cancel_requested_at timestamptz,
  heartbeat_at timestamptz,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  completed_at timestamptz,
  primary key (brand_id, id),
  foreign key (brand_id, model_id) references app.models (brand_id, id) on delete set null (model_id)
);
create index generations_by_time on app.generations (brand_id, created_at, id);

create table app.generated_images (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  generation_id uuid not null,
  model_id uuid,
  user_id uuid not null,
  index integer not null check (index >= 0),
  seed bigint not null,
  object_name text not null collate "C" check (split_part(object_name, '/', 1) = brand_id),
  content_type text not null check (content_type in ('image/png', 'image/jpeg', 'image/webp')),
  width integer not null check (width > 0),
  height integer not null check (height > 0),
  bytes bigint not null check (bytes > 0),
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  receipt jsonb not null default '{}',
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, id),
  unique (brand_id, object_name),
  unique (brand_id, generation_id, index),
  foreign key (brand_id, generation_id) references app.generations (brand_id, id) on delete cascade,
  foreign key (brand_id, model_id) references app.models (brand_id, id) on delete set null (model_id)
);
create index generated_images_by_time on app.generated_images (brand_id, created_at, id);

-- seq counts within one subject: a global counter would tell every brand how busy the others are.
create table app.job_events (
  brand_id text not null references app.brands,
  subject_id uuid not null generated always as (coalesce(job_id, generation_id)) stored,
  seq bigint not null check (seq > 0),
  job_id uuid,
  generation_id uuid,
  at timestamptz not null default clock_timestamp(),
  kind text not null check (kind ~ '^[a-z_]{1,40}$'),
  data jsonb not null default '{}' check (octet_length(data::text) <= 20000),
  primary key (brand_id, subject_id, seq),
  check (num_nonnulls(job_id, generation_id) = 1),
  foreign key (brand_id, job_id) references app.lora_training_jobs (brand_id, id) on delete cascade,
  foreign key (brand_id, generation_id) references app.generations (brand_id, id) on delete cascade
);

-- Calls outside any brand (making one) have keys, too: their brand is null. So the wall of this table looks at both.
create table app.idempotency_keys (
  brand_id text references app.brands,
  user_id uuid not null,
  caller text not null generated always as (coalesce(brand_id, '') || ' ' || user_id::text) stored,
  key text not null check (char_length(key) between 1 and 255),
  route text not null check (char_length(route) <= 200),
  request_sha256 text not null check (request_sha256 ~ '^[0-9a-f]{64}$'),
  status integer,
  body jsonb,
  created_at timestamptz not null default clock_timestamp(),
  primary key (caller, key)
);

-- What ended stays as it ended; only its name, and the link to a model that is deleted, may still change.
create function app.tg_job_guard() returns trigger
language plpgsql set search_path = '' as $$
declare may_change text[] := array['name', 'model_id', 'model_url'];
begin
  if old.cancel_requested_at is not null and new.cancel_requested_at is distinct from old.cancel_requested_at then
    raise exception 'a request to cancel stands' using errcode = 'OB003';
  end if;
  if old.model_id is not null and new.model_id is null then new.model_url := null; end if;
  if old.status not in ('completed', 'failed', 'canceled') then return new; end if;
  if to_jsonb(new) - may_change is distinct from to_jsonb(old) - may_change
     or (new.model_id is not null and new.model_id is distinct from old.model_id)
     or (new.model_url is not null and new.model_url is distinct from old.model_url) then
    raise exception 'the job has ended' using errcode = 'OB002';
  end if;
  return new;
end $$;
create trigger job_guard before update on app.lora_training_jobs for each row execute function app.tg_job_guard();

create function app.tg_generation_guard() returns trigger
language plpgsql set search_path = '' as $$
begin
  if old.cancel_requested_at is not null and new.cancel_requested_at is distinct from old.cancel_requested_at then
    raise exception 'a request to cancel stands' using errcode = 'OB003';
  end if;
  if old.status in ('completed', 'failed', 'canceled')
     and to_jsonb(new) - 'model_id' is distinct from to_jsonb(old) - 'model_id' then
    raise exception 'the generation has ended' using errcode = 'OB002';
  end if;
  return new;
end $$;
create trigger generation_guard before update on app.generations
  for each row execute function app.tg_generation_guard();

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

alter table storage.buckets enable row level security;
alter table storage.buckets force row level security;
call app.build_wall('storage.objects');
call app.build_wall('app.brand_assets');
call app.build_wall('app.asset_captions');
call app.build_wall('app.lora_training_jobs');
call app.build_wall('app.job_assets');
call app.build_wall('app.models');
call app.build_wall('app.generations');
call app.build_wall('app.generated_images');
call app.build_wall('app.job_events');

reset role;
set role onbrand_definer;

-- Whose idempotency keys these are: the user's in the one brand of this transaction, or outside any brand.
create function private.my_caller() returns text
language plpgsql stable security definer set search_path = '' as $$
declare c jsonb := private.claims();
begin
  if c ? 'brand_id' then return private.my_brand() || ' ' || (c ->> 'sub'); end if;
  if private.credential_lives() then return ' ' || (c ->> 'sub'); end if;
  return null;
end $$;

create function private.claimed_caller() returns jsonb
language sql stable
return jsonb_build_object(coalesce(private.claimed() || ' ' || split_part(current_setting('request.scope', true), '|', 5),
  ''), true);

reset role;
grant execute on function private.my_caller(), private.claimed_caller() to authenticated, onbrand_owner;
set role onbrand_owner;

alter table app.idempotency_keys enable row level security;
alter table app.idempotency_keys force row level security;
create policy wall_user on app.idempotency_keys as restrictive for all to authenticated
  using ((caller, true) = (select s.caller, s.caller is not null from (select private.my_caller() offset 0) as s (caller))
    and ((select private.claimed_caller()))[caller] is not null)
  with check (caller = (select private.my_caller()));
create policy wall_system on app.idempotency_keys as restrictive for all to brand_system using (false);
create policy own_code on app.idempotency_keys to onbrand_definer using (true) with check (true);
create trigger brand_immutable before update on app.idempotency_keys
  for each row execute function app.tg_brand_immutable();
call app.keep_no_statistics('app.idempotency_keys');

-- First gate, the grants: no TRUNCATE, REFERENCES or TRIGGER; inserts and updates by column.
grant select on storage.buckets to authenticated, brand_system;
grant select, delete on storage.objects to authenticated;
grant insert (bucket_id, name, user_id, content_type, bytes) on storage.objects to authenticated, brand_system;
grant select on storage.objects to brand_system;

grant select, delete on app.brand_assets to authenticated;
grant insert (brand_id, user_id, name, type, object, object_name, sha256, content_type, bytes, width, height, metadata)
  on app.brand_assets to authenticated;
grant select on app.brand_assets to brand_system;

grant select on app.asset_captions to authenticated, brand_system;
grant insert (brand_id, asset_id, version, caption, user_id) on app.asset_captions to authenticated;

grant select, delete on app.lora_training_jobs to authenticated;
grant insert (brand_id, user_id, name, model_type, training_config, provider) on app.lora_training_jobs to authenticated;
grant update (name, cancel_requested_at) on app.lora_training_jobs to authenticated;
grant select on app.lora_training_jobs to brand_system;
grant update (status, progress, provider_job_id, attempts, model_id, model_url, sample_images_urls, error, metrics,
  heartbeat_at, started_at, completed_at) on app.lora_training_jobs to brand_system;

grant select on app.job_assets to authenticated, brand_system;
grant insert (brand_id, job_id, asset_id) on app.job_assets to authenticated;

grant select, delete on app.models to authenticated;
grant select on app.models to brand_system;
grant insert (brand_id, job_id, user_id, model_type, version, object_name, sha256, bytes, rank, trigger_word,
  base_revision, metrics) on app.models to brand_system;

grant select on app.generations to authenticated, brand_system;
grant insert (brand_id, user_id, model_id, model_type, model_name, prompt, negative_prompt, num_images, width, height,
  seed, num_inference_steps, guidance_scale, true_cfg_scale, lora_scale, output_format) on app.generations to authenticated;
grant update (cancel_requested_at) on app.generations to authenticated;
grant update (status, progress, error, heartbeat_at, started_at, completed_at) on app.generations to brand_system;

grant select, delete on app.generated_images to authenticated;
grant select on app.generated_images to brand_system;
grant insert (brand_id, generation_id, model_id, user_id, index, seed, object_name, content_type, width, height, bytes,
  sha256, receipt) on app.generated_images to brand_system;

grant select on app.job_events to authenticated, brand_system;
grant insert (brand_id, seq, job_id, generation_id, kind, data) on app.job_events to brand_system;

grant select, delete on app.idempotency_keys to authenticated;
grant insert (brand_id, user_id, key, route, request_sha256) on app.idempotency_keys to authenticated;
grant update (status, body) on app.idempotency_keys to authenticated;

-- Second gate, who may do which verb (the walls above stand before each of these). Members and admins:
create policy anyone_select on storage.buckets for select to authenticated, brand_system using (true);

create policy member_select on storage.objects for select to authenticated using (true);
create policy member_insert on storage.objects for insert to authenticated
  with check (bucket_id in ('training-data', 'brand-documents') and user_id = (select private.uid()));
create policy matrix_delete on storage.objects for delete to authenticated using (
  case when bucket_id = 'generated-content' and split_part(name, '/', 2) <> 'samples'
    then user_id = (select private.uid())
    else (select private.is_admin()) end);

create policy member_select on app.brand_assets for select to authenticated using (true);
create policy member_insert on app.brand_assets for insert to authenticated
  with check (user_id = (select private.uid()));
create policy admin_delete on app.brand_assets for delete to authenticated
  using ((select private.is_admin()));

create policy member_select on app.asset_captions for select to authenticated using (true);
create policy member_insert on app.asset_captions for insert to authenticated
  with check (user_id = (select private.uid()));

create policy member_select on app.lora_training_jobs for select to authenticated using (true);
create policy member_insert on app.lora_training_jobs for insert to authenticated
  with check (user_id = (select private.uid()));
create policy owner_update on app.lora_training_jobs for update to authenticated
  using (user_id = (select private.uid())) with check (user_id = (select private.uid()));
create policy admin_delete on app.lora_training_jobs for delete to authenticated
  using ((select private.is_admin()));

create policy member_select on app.job_assets for select to authenticated using (true);
create policy owner_insert on app.job_assets for insert to authenticated with check (exists (
  select 1 from app.lora_training_jobs j where j.brand_id = job_assets.brand_id and j.id = job_assets.job_id
    and j.user_id = (select private.uid()) and j.status = 'pending'));

create policy member_select on app.models for select to authenticated using (true);
create policy admin_delete on app.models for delete to authenticated
  using ((select private.is_admin()));

create policy member_select on app.generations for select to authenticated using (true);
create policy member_insert on app.generations for insert to authenticated
  with check (user_id = (select private.uid()));
create policy owner_update on app.generations for update to authenticated
  using (user_id = (select private.uid())) with check (user_id = (select private.uid()));

create policy member_select on app.generated_images for select to authenticated using (true);
create policy owner_delete on app.generated_images for delete to authenticated
  using (user_id = (select private.uid()));

create policy member_select on app.job_events for select to authenticated using (true);

create policy own_keys on app.idempotency_keys for all to authenticated
  using (true) with check (true);

-- The system: inside one brand, for the one job or generation of its ticket, on behalf of that one's owner; pictures
-- and weights only until that has ended, however long the ticket lasts.
create policy system_select on app.lora_training_jobs for select to brand_system using (
  (select private.ctx('kind')) = 'training' and id = (select private.ctx('job_id'))::uuid
  and user_id = (select private.ctx('on_behalf_of'))::uuid);
create policy system_update on app.lora_training_jobs for update to brand_system using (
  (select private.ctx('kind')) = 'training' and id = (select private.ctx('job_id'))::uuid
  and user_id = (select private.ctx('on_behalf_of'))::uuid) with check (true);

create policy system_select on app.generations for select to brand_system using (
  (select private.ctx('kind')) = 'generation' and id = (select private.ctx('job_id'))::uuid
  and user_id = (select private.ctx('on_behalf_of'))::uuid);
create policy system_update on app.generations for update to brand_system using (
  (select private.ctx('kind')) = 'generation' and id = (select private.ctx('job_id'))::uuid
  and user_id = (select private.ctx('on_behalf_of'))::uuid) with check (true);

create policy system_select on app.job_assets for select to brand_system using (exists (
  select 1 from app.lora_training_jobs j where j.brand_id = job_assets.brand_id and j.id = job_assets.job_id
    and j.status in ('pending', 'training')));
create policy system_select on app.brand_assets for select to brand_system using (exists (
  select 1 from app.job_assets ja where ja.brand_id = brand_assets.brand_id and ja.asset_id = brand_assets.id));
create policy system_select on app.asset_captions for select to brand_system using (exists (
  select 1 from app.job_assets ja where ja.brand_id = asset_captions.brand_id
    and ja.asset_id = asset_captions.asset_id));

-- A training sees the brand's models (it writes metadata.json); a generation sees the one it draws with.
create policy system_select on app.models for select to brand_system using (
  case (select private.ctx('kind'))
    when 'training' then exists (select 1 from app.lora_training_jobs j where j.brand_id = models.brand_id)
    when 'generation' then exists (
      select 1 from app.generations g where g.brand_id = models.brand_id and g.model_id = models.id
        and g.status in ('pending', 'running'))
    else false end);
create policy system_insert on app.models for insert to brand_system with check (exists (
  select 1 from app.lora_training_jobs j where j.brand_id = models.brand_id and j.id = models.job_id
    and j.model_type = models.model_type and j.user_id = models.user_id and j.status = 'training'));

create policy system_select on app.generated_images for select to brand_system using (exists (
  select 1 from app.generations g where g.brand_id = generated_images.brand_id
    and g.id = generated_images.generation_id));
create policy system_insert on app.generated_images for insert to brand_system with check (exists (
  select 1 from app.generations g where g.brand_id = generated_images.brand_id
    and g.id = generated_images.generation_id and g.user_id = generated_images.user_id
    and g.model_id is not distinct from generated_images.model_id and g.status = 'running'));

create policy system_select on app.job_events for select to brand_system using (
  exists (select 1 from app.lora_training_jobs j where j.brand_id = job_events.brand_id and j.id = job_events.job_id)
  or exists (select 1 from app.generations g
    where g.brand_id = job_events.brand_id and g.id = job_events.generation_id));
create policy system_insert on app.job_events for insert to brand_system with check (
  exists (select 1 from app.lora_training_jobs j where j.brand_id = job_events.brand_id and j.id = job_events.job_id)
  or exists (select 1 from app.generations g
    where g.brand_id = job_events.brand_id and g.id = job_events.generation_id));

create policy system_select on storage.objects for select to brand_system using (
  exists (select 1 from app.brand_assets a where a.brand_id = objects.brand_id and a.object_name = objects.name
    and objects.bucket_id = 'training-data')
  or exists (select 1 from app.models m where m.brand_id = objects.brand_id and m.object_name = objects.name
    and objects.bucket_id = 'models'));
create policy system_insert on storage.objects for insert to brand_system with check (
  user_id = (select private.ctx('on_behalf_of'))::uuid
  and case (select private.ctx('kind'))
    when 'training' then (bucket_id = 'models' or (bucket_id = 'generated-content'
        and split_part(name, '/', 2) = 'samples' and split_part(name, '/', 3) = (select private.ctx('job_id'))))
      and exists (select 1 from app.lora_training_jobs j where j.brand_id = objects.brand_id and j.status = 'training')
    when 'generation' then bucket_id = 'generated-content' and split_part(name, '/', 2) <> 'samples'
      and exists (select 1 from app.generations g where g.brand_id = objects.brand_id and g.status = 'running')
    else false end);

reset role;

-- The dispatcher learns ids and states, nothing else, and only from this function.
grant select (id, brand_id, user_id, status, provider, provider_job_id, attempts, cancel_requested_at, heartbeat_at,
  created_at) on app.lora_training_jobs to onbrand_definer;
grant select (id, brand_id, user_id, status, cancel_requested_at, heartbeat_at, created_at)
  on app.generations to onbrand_definer;
set role onbrand_definer;
create function private.queue() returns table (kind text, brand_id text, job_id uuid, user_id uuid, status text,
  provider text, provider_job_id text, attempts integer, cancel_requested boolean, heartbeat_at timestamptz,
  created_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select 'training', j.brand_id, j.id, j.user_id, j.status, j.provider, j.provider_job_id, j.attempts,
    j.cancel_requested_at is not null, j.heartbeat_at, j.created_at
  from app.lora_training_jobs j where j.status in ('pending', 'training')
  union all
  select 'generation', g.brand_id, g.id, g.user_id, g.status, null, null, 0,
    g.cancel_requested_at is not null, g.heartbeat_at, g.created_at
  from app.generations g where g.status in ('pending', 'running')
  order by created_at
$$;
reset role;
grant execute on function private.queue() to onbrand_dispatcher;

set role onbrand_owner;
alter table storage.buckets no force row level security;
insert into storage.buckets values ('training-data'), ('models'), ('generated-content'), ('brand-documents');
alter table storage.buckets force row level security;
reset role;
