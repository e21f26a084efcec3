-- depends: 0007_audit
-- What engines are asked for (several adapters in one picture, a sampler, passes of one's own, previews), and each
-- brand's share of the engines, which nobody sets but the operator.
set role onbrand_owner;

alter table app.generations
  add column sampler text check (sampler ~ '^[a-z0-9+-]{1,20}$'),
  add column exclusive boolean not null default false,
  add column preview_every integer not null default 0 check (preview_every between 0 and 1000);
call app.keep_no_statistics('app.generations');
-- How much a brand has waiting is counted at each admission: by its own rows, so that it takes no longer when others wait.
create index generations_open_by_brand on app.generations (brand_id) where status in ('pending', 'running');

-- The adapters of a generation, by what they were when it was asked for: a picture says this also when they are deleted.
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

-- Those of before had one adapter at most, and its model has the numbers if it is still there.
alter table app.generations no force row level security;
alter table app.models no force row level security;
insert into app.generation_adapters (brand_id, generation_id, index, model_id, model_name, sha256, scale)
  select g.brand_id, g.id, 0, m.id, m.name, m.sha256, g.lora_scale
  from app.generations g join app.models m on m.brand_id = g.brand_id and m.id = g.model_id;
alter table app.generations force row level security;
alter table app.models force row level security;

-- A brand without a row has weight 1, the platform's number of waiting pictures, and no quota of slots.
create table app.brand_limits (
  brand_id text primary key references app.brands,
  weight double precision not null default 1 check (weight between 0.1 and 10),
  max_waiting_pictures integer check (max_waiting_pictures between 1 and 100000),
  slot_quota integer check (slot_quota between 1 and 10000),
  updated_at timestamptz not null default clock_timestamp()
);

call app.build_wall('app.generation_adapters');
call app.build_wall('app.brand_limits');
call app.need_scope('app.generation_adapters', 'insert', 'generate');

grant insert (sampler, exclusive, preview_every) on app.generations to authenticated;
grant select on app.generation_adapters to authenticated, brand_system;
grant insert (brand_id, generation_id, index, model_id, model_name, sha256, scale)
  on app.generation_adapters to authenticated;
grant select on app.brand_limits to authenticated;

create policy member_select on app.generation_adapters for select to authenticated using (true);
-- Into an own generation that has not begun, and only what the model's row says; the first one is the generation's model.
create policy owner_insert on app.generation_adapters for insert to authenticated with check (exists (
  select 1 from app.generations g join app.models m on m.brand_id = g.brand_id and m.model_type = g.model_type
  where g.brand_id = generation_adapters.brand_id and g.id = generation_adapters.generation_id
    and g.user_id = (select private.uid()) and g.status = 'pending' and m.id = generation_adapters.model_id
    and m.name = generation_adapters.model_name and m.sha256 = generation_adapters.sha256
    and (generation_adapters.index > 0 or g.model_id = m.id)));
create policy system_select on app.generation_adapters for select to brand_system using (exists (
  select 1 from app.generations g where g.brand_id = generation_adapters.brand_id
    and g.id = generation_adapters.generation_id));

create policy member_select on app.brand_limits for select to authenticated using (true);
create policy operator_sets on app.brand_limits to onbrand_operator using (true) with check (true);
grant select, insert, update on app.brand_limits to onbrand_operator;

-- A training sees the brand's models (it writes metadata.json); a generation sees those that it draws with.
alter policy system_select on app.models using (
  case (select private.ctx('kind'))
    when 'training' then exists (select 1 from app.lora_training_jobs j where j.brand_id = models.brand_id)
    when 'generation' then exists (
      select 1 from app.generation_adapters a join app.generations g
        on g.brand_id = a.brand_id and g.id = a.generation_id
      where a.brand_id = models.brand_id and a.model_id = models.id and g.status in ('pending', 'running'))
    else false end);

reset role;
