-- depends: 0006_training
-- Generations, the adapters that they use, the images that they make, and the events of generations and training jobs.
set role onbrand_owner;

-- num_lost counts how often a generation was started again because its process was lost. output_compression is the
-- compression of the image file that the caller asked for; null: the platform's default.
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
  sampler text check (sampler ~ '^[a-z0-9+-]{1,20}$'),
  exclusive boolean not null default false,
  preview_every integer not null default 0 check (preview_every between 0 and 1000),
  num_lost integer not null default 0 check (num_lost >= 0),
  output_compression integer check (output_compression between 0 and 100),
  primary key (brand_id, id),
  foreign key (brand_id, model_id) references app.models (brand_id, id) on delete set null (model_id)
);
create index generations_by_time on app.generations (brand_id, created_at, id);
-- For the admission check, which counts a brand's waiting images: its cost does not depend on other brands.
create index generations_open_by_brand on app.generations (brand_id) where status in ('pending', 'running');

-- The adapters of a generation, as they were when it was requested. The row keeps the name after a model is deleted.
create table app.generation_adapters (
  brand_id text not null,
  generation_id uuid not null,
  index integer not null check (index between 0 and 3),
  model_id uuid,
  model_name text not null check (char_length(model_name) <= 100),
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  scale double precision not null check (scale between -10 and 10),
  primary key (brand_id, generation_id, index),
  foreign key (brand_id, generation_id) references app.generations (brand_id, id) on delete cascade,
  foreign key (brand_id, model_id) references app.models (brand_id, id) on delete set null (model_id)
);
create index generation_adapters_by_model on app.generation_adapters (brand_id, model_id);

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

-- seq counts within one job or generation. A global counter would show every brand how busy the others are.
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

-- A request to cancel cannot be withdrawn. After a generation has ended, only the link to its model may change.
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
create trigger creator_is_member after insert on app.generations
  for each row when (current_user = 'authenticated') execute function private.tg_creator_is_member();

-- Isolation and scopes.
call app.enable_brand_isolation('app.generations');
call app.enable_brand_isolation('app.generation_adapters');
call app.enable_brand_isolation('app.generated_images');
call app.enable_brand_isolation('app.job_events');
call app.require_scope('app.generations', 'insert', 'generate');
call app.require_scope('app.generations', 'update', 'generate');
call app.require_scope('app.generation_adapters', 'insert', 'generate');
call app.require_scope('app.generated_images', 'delete', 'generate');

-- Grants and permissive policies; the policies of brand_system are in 0011_background.
grant select on app.generations to authenticated, brand_system;
grant insert (brand_id, user_id, model_id, model_type, model_name, prompt, negative_prompt, num_images, width, height,
  seed, num_inference_steps, guidance_scale, true_cfg_scale, lora_scale, output_format, sampler, exclusive,
  preview_every, output_compression) on app.generations to authenticated;
grant update (cancel_requested_at) on app.generations to authenticated;
grant update (status, progress, error, heartbeat_at, started_at, completed_at, num_lost)
  on app.generations to brand_system;
create policy member_select on app.generations for select to authenticated using (true);
create policy member_insert on app.generations for insert to authenticated
  with check (user_id = (select private.uid()));
create policy owner_update on app.generations for update to authenticated
  using (user_id = (select private.uid())) with check (user_id = (select private.uid()));

-- A member adds adapters only to an own generation that has not started, and only with the values of the model's row.
-- The first adapter is the model of the generation.
grant select on app.generation_adapters to authenticated, brand_system;
grant insert (brand_id, generation_id, index, model_id, model_name, sha256, scale)
  on app.generation_adapters to authenticated;
create policy member_select on app.generation_adapters for select to authenticated using (true);
create policy owner_insert on app.generation_adapters for insert to authenticated with check (exists (
  select 1 from app.generations g join app.models m on m.brand_id = g.brand_id and m.model_type = g.model_type
  where g.brand_id = generation_adapters.brand_id and g.id = generation_adapters.generation_id
    and g.user_id = (select private.uid()) and g.status = 'pending' and m.id = generation_adapters.model_id
    and m.name = generation_adapters.model_name and m.sha256 = generation_adapters.sha256
    and (generation_adapters.index > 0 or g.model_id = m.id)));

grant select, delete on app.generated_images to authenticated;
grant select on app.generated_images to brand_system;
grant insert (brand_id, generation_id, model_id, user_id, index, seed, object_name, content_type, width, height, bytes,
  sha256, receipt) on app.generated_images to brand_system;
create policy member_select on app.generated_images for select to authenticated using (true);
create policy owner_delete on app.generated_images for delete to authenticated
  using (user_id = (select private.uid()));

grant select on app.job_events to authenticated, brand_system;
grant insert (brand_id, seq, job_id, generation_id, kind, data) on app.job_events to brand_system;
create policy member_select on app.job_events for select to authenticated using (true);

reset role;
